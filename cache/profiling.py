"""Measures how far a similarity may be trusted: similarity × K → quality of the resumed image over that of a whole run.

The threshold of a K is the lowest similarity from which resumed images keep the share α of the quality of whole runs
of the same prompts and seeds. The expected quality is taken to rise with the similarity (isotonic regression), so that
a lucky pair far down does not decide. The same for the discriminator's confidence that a cached picture fits the query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cache.policy.selector import By, Selector
from weir.errors import ConfigError
from weir.files import written_whole


@dataclass(frozen=True, slots=True)
class Runs:
    """Some runs: what each is judged to be worth, [B], and the states that it passed, by K; what the discriminator saw
    in its picture, float16 [F], and its confidence, [B], where it looked."""

    quality: np.ndarray
    states: list[dict[int, Any]]
    seen: list[np.ndarray | None]
    confidence: np.ndarray


#: ``draw(prompts, seeds, states)``: a state that is not None is resumed from.
Draw = Callable[[Sequence[str], Sequence[int], Sequence[Any]], Runs]


_EDGES = (-1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.01)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured: pairs of a query and a cached prompt.

    Attributes:
        similarity: cosine of each pair, or the confidence that the cached picture fits the query, [N].
        whole: quality of the query's whole run, [N].
        resumed: by K, quality of the query resumed at K from the cached prompt's state, [N]; where that was doubted, of
            the answer that was given.
        ran: by K, steps that ran for that answer, [N]; None: those that were left.
    """

    similarity: np.ndarray
    whole: np.ndarray
    resumed: dict[int, np.ndarray]
    by: By = By.SIMILARITY
    ran: dict[int, np.ndarray] | None = None

    def bins(self) -> list[dict[str, Any]]:
        """The ratio by similarity and K, for people; bins without pairs are left out."""
        rows = []
        for low, high in pairwise(_EDGES):
            here = (self.similarity >= low) & (self.similarity < high)
            if here.any() and self.whole[here].mean() > 0:
                ratios = {str(k): float(q[here].mean() / self.whole[here].mean()) for k, q in self.resumed.items()}
                row = {"from": low, "to": high, "pairs": int(here.sum()), "ratio": ratios}
                if self.ran is not None:
                    row["steps"] = {str(k): float(n[here].mean()) for k, n in self.ran.items()}
                rows.append(row)
        return rows


def choose_pairs(vectors: np.ndarray, count: int, seed: int) -> list[tuple[int, int]]:
    """Pairs (query, cached) of a log whose similarities cover the whole range as evenly as the log allows."""
    rng = np.random.default_rng(seed)
    queries = rng.choice(len(vectors), size=min(count, len(vectors)), replace=False)
    pairs = []
    for i, query in enumerate(queries):
        cosines = vectors @ vectors[query]
        cosines[query] = -2
        top = float(cosines.max())
        # Every other query looks near its nearest: hits live there.
        wanted = rng.uniform(0.6 * top, top) if i % 2 else rng.uniform(0, top)
        pairs.append((int(query), int(np.abs(cosines - wanted).argmin())))
    return pairs


def measure(
    prompts: Sequence[str],
    vectors: np.ndarray,
    ks: Sequence[int],
    draw: Draw,
    *,
    count: int,
    seed: int = 0,
    batch: int = 8,
    progress: Callable[[int, int, str], None] | None = None,
) -> Measured:
    """Draws pairs of a log of prompts and judges them.

    Args:
        vectors: unit vectors of the prompts, [N, D].
        ks: the steps to resume at.
        batch: runs that are drawn together.
    """
    pairs = choose_pairs(vectors, count, seed)
    similarity = np.array([float(vectors[q] @ vectors[c]) for q, c in pairs])
    whole = np.zeros(len(pairs))
    resumed = {k: np.zeros(len(pairs)) for k in ks}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        where = slice(start, start + len(part))
        asked, cached = [prompts[q] for q, _ in part], [prompts[c] for _, c in part]
        seeds = list(range(2 * start, 2 * start + len(part)))
        states = draw(cached, [s + 1_000_003 for s in seeds], [None] * len(part)).states
        whole[where] = draw(asked, seeds, [None] * len(part)).quality
        for k in ks:
            resumed[k][where] = draw(asked, seeds, [s[k] for s in states]).quality
        if progress is not None:
            progress(start + len(part), len(pairs), f"{len(pairs)} pairs, {len(ks)} resumes each")
    return Measured(similarity, whole, resumed)


def measure_judged(
    prompts: Sequence[str],
    vectors: np.ndarray,
    k: int,
    draw: Draw,
    weigh: Callable[[np.ndarray, str], np.ndarray],
    *,
    count: int,
    candidates: int,
    steps: int,
    stride: int,
    accept: float,
    batch: int = 8,
    progress: Callable[[int, int, str], None] | None = None,
) -> Measured:
    """Draws the last ``count`` of a log's prompts, whole and resumed from the best judged of their neighbours among the
    prompts before those, and judges them. Where the discriminator has less confidence than ``accept`` in a resumed
    picture, the better judged of the two is the answer, and both were drawn.

    Args:
        k: the step to resume at, the largest that is captured: the state of an early step knows little of the picture
            that was made from it, and the judgement of the picture says little about it.
        weigh: the confidence, [N], in pictures of which this was seen, [N, F], for a prompt.
        candidates: nearest prompts that are looked at, as the cache does.
    """
    pool = len(prompts) - count
    if pool < 1:
        raise ConfigError(f"--count is {count}; the log has {len(prompts)} prompts, and some have to be cached")

    def drawn(indices: range, states: Sequence[Any], what: str) -> Runs:
        parts = []
        for start in range(0, len(indices), batch):
            here = indices[start : start + batch]
            parts.append(draw([prompts[i] for i in here], list(here), states[start : start + batch]))
            if progress is not None:
                progress(start + len(here), len(indices), what)
        return Runs(
            np.concatenate([p.quality for p in parts]),
            [s for p in parts for s in p.states],
            [s for p in parts for s in p.seen],
            np.concatenate([p.confidence for p in parts]),
        )

    cached = drawn(range(pool), [None] * pool, "cached runs")
    judgeable = {j: row for j, row in enumerate(cached.seen) if row is not None}
    if not judgeable:
        raise ConfigError("the discriminator saw nothing in any of the cached pictures; profile by similarity")
    known = np.array(list(judgeable))
    queries = range(pool, len(prompts))
    confidence, chosen = np.zeros(count), []
    for i, query in enumerate(queries):
        near = known[np.argsort(-(vectors[known] @ vectors[query]))[:candidates]]
        judged = weigh(np.stack([judgeable[j] for j in near]), prompts[query])
        confidence[i] = judged.max()
        chosen.append(int(near[judged.argmax()]))
    whole = drawn(queries, [None] * count, "whole runs")
    resumed = drawn(queries, [cached.states[j][k] for j in chosen], f"resumed at {k}")
    kept = (resumed.confidence >= accept) | (resumed.confidence > whole.confidence)
    ran = (steps - k) // stride + np.where(resumed.confidence >= accept, 0, steps)
    answers = np.where(kept, resumed.quality, whole.quality)
    return Measured(confidence, whole.quality, {k: answers}, By.CONFIDENCE, {k: ran})


def thresholds(measured: Measured, alpha: float, steps: int, stride: int = 1, accept: float = 0.0) -> Selector:
    """The selector that keeps the share ``alpha`` of the quality; a K that never does is left out.

    Where doubted pictures are drawn anew, a hit has to save steps on average besides.
    """
    from sklearn.isotonic import IsotonicRegression

    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; it must lie in 0…1")
    levels: list[tuple[float, int]] = []
    least = -1.0
    for k in sorted(measured.resumed):
        gain = measured.resumed[k] - alpha * measured.whole
        expected = IsotonicRegression().fit(measured.similarity, gain).predict(measured.similarity)
        holds = expected >= -1e-9
        if measured.ran is not None:
            saved = IsotonicRegression().fit(measured.similarity, steps - measured.ran[k])
            holds &= saved.predict(measured.similarity) > 0
        enough = measured.similarity[holds]
        if not len(enough):
            break  # a larger K is not better
        # Strictly above, so just below the lowest that held; each K at least as strict as the one before.
        least = max(least + 1e-4, float(enough.min()) - 1e-4)
        levels.append((round(least, 4), k))
    return Selector(tuple(reversed(levels)), steps, measured.by, stride, accept)


def write_profile(
    path: Path,
    measured: Measured,
    selector: Selector,
    *,
    family: str,
    model: str,
    encoder: str,
    alpha: float,
    judge: str,
) -> None:
    """Writes what ``cache.selector`` reads, with what it was made from; whole or not at all.

    Args:
        model: names the weights.

    Raises:
        ConfigError: the file cannot be written.
    """
    fields = {
        "family": family,
        "model": model,
        "encoder": encoder,
        "judge": judge,
        "alpha": alpha,
        "pairs": len(measured.similarity),
        "selector": selector.to_dict(),
        "measured": measured.bins(),
    }
    with written_whole(path) as draft:
        draft.write_text(json.dumps(fields, indent=1) + "\n")

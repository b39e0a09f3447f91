"""Measures cache profiles: the quality of resumed images relative to whole runs, by similarity and K.

The threshold of a K is the lowest similarity from which resumed images keep the share α of the quality of whole runs
of the same prompts and seeds. The expected quality is assumed to rise with the similarity (isotonic regression), so
that a lucky pair of low similarity does not decide. Instead of the similarity, a profile may use the discriminator's
confidence that a cached image fits the query.
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
    """Results of runs.

    Attributes:
        quality: of each image, [B].
        states: captured states of each run, by K.
        seen: the discriminator's features of each image, float16 [F]; None without them.
        confidence: the discriminator's confidence in each image, [B].
    """

    quality: np.ndarray
    states: list[dict[int, Any]]
    seen: list[np.ndarray | None]
    confidence: np.ndarray


#: ``generate(prompts, seeds, states)``: a run resumes from its state unless that is None.
Generate = Callable[[Sequence[str], Sequence[int], Sequence[Any]], Runs]


_EDGES = (-1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.01)


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of pairs of a query and a cached prompt.

    Attributes:
        similarity: cosine of each pair, or the confidence that the cached image fits the query, [N].
        whole: quality of the query's whole run, [N].
        resumed: by K, quality of the answer when the query resumes at K from the cached prompt's state, [N].
        ran: by K, number of steps that ran for that answer, [N]; None: the steps after K.
    """

    similarity: np.ndarray
    whole: np.ndarray
    resumed: dict[int, np.ndarray]
    by: By = By.SIMILARITY
    ran: dict[int, np.ndarray] | None = None

    def bins(self) -> list[dict[str, Any]]:
        """The ratio by bins of similarity and by K, for reading; bins without pairs are omitted."""
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
    """Chooses pairs (query, cached) of a log whose similarities cover the range as evenly as possible."""
    rng = np.random.default_rng(seed)
    queries = rng.choice(len(vectors), size=min(count, len(vectors)), replace=False)
    pairs = []
    for i, query in enumerate(queries):
        cosines = vectors @ vectors[query]
        cosines[query] = -2
        top = float(cosines.max())
        # Every other pair has a similarity near the query's largest, where hits are.
        wanted = rng.uniform(0.6 * top, top) if i % 2 else rng.uniform(0, top)
        pairs.append((int(query), int(np.abs(cosines - wanted).argmin())))
    return pairs


def measure(
    prompts: Sequence[str],
    vectors: np.ndarray,
    ks: Sequence[int],
    generate: Generate,
    *,
    count: int,
    seed: int = 0,
    batch: int = 8,
    progress: Callable[[int, int, str], None] | None = None,
) -> Measured:
    """Generates pairs of a log of prompts, whole and resumed at every K, and measures their quality.

    Args:
        vectors: unit vectors of the prompts, [N, D].
        ks: the steps to resume at.
        batch: number of runs that are generated together.
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
        states = generate(cached, [s + 1_000_003 for s in seeds], [None] * len(part)).states
        whole[where] = generate(asked, seeds, [None] * len(part)).quality
        for k in ks:
            resumed[k][where] = generate(asked, seeds, [s[k] for s in states]).quality
        if progress is not None:
            progress(start + len(part), len(pairs), f"{len(pairs)} pairs, {len(ks)} resumes each")
    return Measured(similarity, whole, resumed)


def measure_judged(
    prompts: Sequence[str],
    vectors: np.ndarray,
    k: int,
    generate: Generate,
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
    """Measures a profile by confidence on the last ``count`` prompts of a log; the prompts before them are cached.

    Each query is generated from noise, and resumed from the best judged of its neighbours. If the discriminator's
    confidence in the resumed image is below ``accept``, the answer is the better judged of the two images, and the
    steps of both runs count.

    Args:
        k: the step to resume at, the largest that is captured: the state of an early step has little in common with the
            final image, which is what the discriminator judges.
        weigh: confidence, [N], in images with these features, [N, F], for a prompt.
        candidates: number of nearest prompts that are judged, as in the cache.
    """
    pool = len(prompts) - count
    if pool < 1:
        raise ConfigError(f"--count is {count}; the log has {len(prompts)} prompts, and some have to be cached")

    def generated(indices: range, states: Sequence[Any], what: str) -> Runs:
        parts = []
        for start in range(0, len(indices), batch):
            here = indices[start : start + batch]
            parts.append(generate([prompts[i] for i in here], list(here), states[start : start + batch]))
            if progress is not None:
                progress(start + len(here), len(indices), what)
        return Runs(
            np.concatenate([p.quality for p in parts]),
            [s for p in parts for s in p.states],
            [s for p in parts for s in p.seen],
            np.concatenate([p.confidence for p in parts]),
        )

    cached = generated(range(pool), [None] * pool, "cached runs")
    judgeable = {j: row for j, row in enumerate(cached.seen) if row is not None}
    if not judgeable:
        raise ConfigError("the discriminator has no features of any cached image; profile by similarity")
    known = np.array(list(judgeable))
    queries = range(pool, len(prompts))
    confidence, chosen = np.zeros(count), []
    for i, query in enumerate(queries):
        near = known[np.argsort(-(vectors[known] @ vectors[query]))[:candidates]]
        judged = weigh(np.stack([judgeable[j] for j in near]), prompts[query])
        confidence[i] = judged.max()
        chosen.append(int(near[judged.argmax()]))
    whole = generated(queries, [None] * count, "whole runs")
    resumed = generated(queries, [cached.states[j][k] for j in chosen], f"resumed at {k}")
    kept = (resumed.confidence >= accept) | (resumed.confidence > whole.confidence)
    ran = (steps - k) // stride + np.where(resumed.confidence >= accept, 0, steps)
    answers = np.where(kept, resumed.quality, whole.quality)
    return Measured(confidence, whole.quality, {k: answers}, By.CONFIDENCE, {k: ran})


def thresholds(measured: Measured, alpha: float, steps: int, stride: int = 1, accept: float = 0.0) -> Selector:
    """The selector that keeps the share ``alpha`` of the quality, without the K that never do.

    With ``accept``, where doubted images are generated again, a hit also has to save steps on average.
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
        # Thresholds are exclusive, so it is just below the lowest good similarity; a larger K is never less strict.
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
    """Writes a profile for ``cache.selector``, with its measurements, atomically.

    Args:
        model: name of the weights.

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

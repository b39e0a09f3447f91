"""Measures cache profiles: the quality of resumed images relative to whole runs, by similarity and K.

The threshold of a K is the lowest similarity from which resumed images keep the share α of the quality of whole runs
of the same prompts and seeds. The expected quality is assumed to rise with the similarity (isotonic regression), so
that a lucky pair of low similarity does not decide. Instead of the similarity, a profile may use the discriminator's
confidence that a cached image fits the query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.policy.selector import By, Selector
from weir.errors import ConfigError
from weir.files import written_whole
from weir.states import capture_steps


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

    @classmethod
    def joined(cls, parts: Sequence[Runs]) -> Runs:
        """The runs of several batches."""
        return cls(
            np.concatenate([p.quality for p in parts]),
            [s for p in parts for s in p.states],
            [s for p in parts for s in p.seen],
            np.concatenate([p.confidence for p in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProfiling:
    """How a cache profile is measured.

    Attributes:
        by: the criterion by which a cached run is used for a prompt.
        alpha: share of the quality to keep, 0…1.
        count: pairs of prompts to generate.
        cached: by confidence, the prompts that fill the cache first.
        candidates: by confidence, the neighbours to choose from.
        stride: resumed runs take every n-th of the remaining steps.
        accept: by confidence, below it a resumed image is generated from noise.
        seed: of everything random.
    """

    by: By = By.SIMILARITY
    alpha: float = 0.95
    count: int = 160
    cached: int = 240
    candidates: int = 32
    stride: int = 1
    accept: float = 0.9
    seed: int = 0

    @property
    def prompts(self) -> int:
        """Length of a log of prompts that is long enough."""
        return self.cached + self.count if self.by is By.CONFIDENCE else 20 * self.count

    def steps_to_resume_at(self, steps: int) -> list[int]:
        """The K to measure of a variant with that many steps.

        Raises:
            ConfigError: the stride fits none.
        """
        ks = [k for k in capture_steps(steps) if k % self.stride == 0]
        if not ks or steps % self.stride:
            raise ConfigError(f"--stride is {self.stride}; it must divide {steps} steps and a captured one")
        return ks


class EncodedLog(NamedTuple):
    """A log of prompts.

    Attributes:
        prompts: in order of submission, [N].
        vectors: their unit vectors, [N, D].
    """

    prompts: Sequence[str]
    vectors: np.ndarray


#: ``generate(prompts, seeds, states)``: a run resumes from its state unless that is None.
Generate = Callable[[Sequence[str], Sequence[int], Sequence[Any]], Runs]
#: ``weigh(features, prompt)``: confidence, [N], in images with these features, [N, F], for a prompt.
Weigh = Callable[[np.ndarray, str], np.ndarray]
#: Called with the runs that are done, their number, and what they are.
Progress = Callable[[int, int, str], None]

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
    log: EncodedLog,
    ks: Sequence[int],
    generate: Generate,
    how: CacheProfiling,
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> Measured:
    """Generates pairs of a log of prompts, whole and resumed at every K, and measures their quality.

    Args:
        ks: the steps to resume at.
        batch: number of runs that are generated together.
    """
    prompts, vectors = log
    pairs = choose_pairs(vectors, how.count, how.seed)
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
    log: EncodedLog,
    steps: int,
    generate: Generate,
    weigh: Weigh,
    how: CacheProfiling,
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> Measured:
    """Measures a profile by confidence on the last ``how.count`` prompts of a log; the prompts before them are cached.

    Each query is generated from noise, and resumed from the best judged of its neighbours, at the largest K that is
    captured: the state of an early step has little in common with the final image, which is what the discriminator
    judges. If its confidence in the resumed image is below ``how.accept``, the answer is the better judged of the two
    images, and the steps of both runs count.

    Args:
        steps: of a whole run.
        batch: number of runs that are generated together.

    Raises:
        ConfigError: the log is too short, or no cached image can be judged.
    """
    count, k = how.count, how.steps_to_resume_at(steps)[-1]
    pool = len(log.prompts) - count
    if pool < 1:
        raise ConfigError(f"--count is {count}; the log has {len(log.prompts)} prompts, and some have to be cached")

    def generated(indices: range, states: Sequence[Any], what: str) -> Runs:
        parts = []
        for start in range(0, len(indices), batch):
            here = indices[start : start + batch]
            parts.append(generate([log.prompts[i] for i in here], list(here), states[start : start + batch]))
            if progress is not None:
                progress(start + len(here), len(indices), what)
        return Runs.joined(parts)

    cached = generated(range(pool), [None] * pool, "cached runs")
    queries = range(pool, len(log.prompts))
    chosen, confidence = _best_neighbours(log, queries, cached, weigh, how.candidates)
    whole = generated(queries, [None] * count, "whole runs")
    resumed = generated(queries, [cached.states[j][k] for j in chosen], f"resumed at {k}")
    kept = (resumed.confidence >= how.accept) | (resumed.confidence > whole.confidence)
    ran = (steps - k) // how.stride + np.where(resumed.confidence >= how.accept, 0, steps)
    answers = np.where(kept, resumed.quality, whole.quality)
    return Measured(confidence, whole.quality, {k: answers}, By.CONFIDENCE, {k: ran})


def _best_neighbours(
    log: EncodedLog, queries: range, cached: Runs, weigh: Weigh, candidates: int
) -> tuple[list[int], np.ndarray]:
    """For each query the cached run that is judged best of its nearest ones, and the confidence in it.

    Raises:
        ConfigError: no cached run can be judged.
    """
    judgeable = {j: row for j, row in enumerate(cached.seen) if row is not None}
    if not judgeable:
        raise ConfigError("the discriminator has no features of any cached image; profile by similarity")
    known = np.array(list(judgeable))
    chosen, confidence = [], []
    for query in queries:
        near = known[np.argsort(-(log.vectors[known] @ log.vectors[query]))[:candidates]]
        judged = weigh(np.stack([judgeable[j] for j in near]), log.prompts[query])
        chosen.append(int(near[judged.argmax()]))
        confidence.append(float(judged.max()))
    return chosen, np.array(confidence)


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


@dataclass(frozen=True, slots=True)
class ProfileOrigin:
    """What a profile was measured with.

    Attributes:
        family: its name.
        model: name of the weights.
        encoder: version of the prompt encoder.
        judge: kind of the measure of quality, with the name of its model.
        alpha: share of the quality to keep.
    """

    family: str
    model: str
    encoder: str
    judge: str
    alpha: float


def write_profile(path: Path, measured: Measured, selector: Selector, origin: ProfileOrigin) -> None:
    """Writes a profile for ``cache.selector``, with its measurements, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    fields = {
        **asdict(origin),
        "pairs": len(measured.similarity),
        "selector": selector.to_dict(),
        "measured": measured.bins(),
    }
    with written_whole(path) as draft:
        draft.write_text(json.dumps(fields, indent=1) + "\n")

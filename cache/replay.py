"""Replays a log against the cache's decisions, without generating images, to measure the savings.

There are two kinds of logs: *similarities* that another cache recorded, and *prompts*, whose neighbours are searched
here, under an eviction policy and a capacity.
"""

from __future__ import annotations

import csv
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.index import VectorIndex
from cache.policy.approaches import Approach
from cache.policy.catalog import Catalog, Index, Insert
from cache.policy.eviction import eviction_policy
from cache.policy.predictor import MatchPredictor
from cache.policy.selector import By
from weir.errors import ConfigError

_SIMILARITY_COLUMNS = ("scores", "score", "similarity", "similarities")
_PROMPT_COLUMNS = ("prompt", "prompts", "queries", "query")


@dataclass(frozen=True, slots=True)
class Figures:
    """The savings on a log.

    Attributes:
        served: number of requests by the K that they resumed at; 0 is a miss.
        steps_saved: share of all heavy denoising steps, 0…1.
        entries, states, evicted: numbers of entries and states in the cache at the end, and of evicted states.
    """

    requests: int
    served: dict[int, int]
    steps_saved: float
    entries: int = 0
    states: int = 0
    evicted: int = 0

    @property
    def hit_ratio(self) -> float:
        return sum(n for k, n in self.served.items() if k) / self.requests if self.requests else 0.0

    @property
    def shares(self) -> dict[int, float]:
        return {k: n / self.requests for k, n in sorted(self.served.items())}

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON, with the keys of ``weir cache replay-log --json``."""
        return {
            "requests": self.requests,
            "hit_ratio": self.hit_ratio,
            "shares": {str(k): share for k, share in self.shares.items()},
            "steps_saved": self.steps_saved,
            "entries": self.entries,
            "states": self.states,
            "evicted": self.evicted,
        }


def figures(approach: Approach, served: Counter[int], **more: int) -> Figures:
    """The figures of requests counted by K."""
    requests = sum(served.values())
    saved = sum(approach.saved(k) * n for k, n in served.items())
    ks = approach.rules.selector.ks if approach.rules else ()
    counted = {k: served.get(k, 0) for k in sorted({0, *ks, *served})}
    return Figures(requests, counted, saved / (approach.steps * requests) if requests else 0.0, **more)


def replay_similarities(similarities: Iterable[float], approach: Approach) -> Figures:
    """Applies the approach's thresholds to a log of similarities of prompts, as if every state were cached.

    Raises:
        ConfigError: the approach compares prompts with images.
    """
    _compares_prompts(approach)
    if approach.rules is None:
        return figures(approach, Counter({0: len(list(similarities))}))
    return figures(approach, Counter(approach.rules.selector.select(s) for s in similarities))


def replay_prompts(
    vectors: Sequence[np.ndarray] | np.ndarray,
    approach: Approach,
    *,
    eviction: str | None = None,
    capacity: int | None = None,
    index: Callable[[], Index] | None = None,
    partitions: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Figures:
    """Replays prompts in order, from an empty cache with room for ``capacity`` states.

    Args:
        vectors: unit vectors of the prompts, [N, D].
        eviction: name of a policy; None: the approach's own.
        partitions: partition of each prompt; prompts match within their partition only.

    Raises:
        ConfigError: the eviction policy is unknown, or the approach compares prompts with images.
    """
    _compares_prompts(approach)
    rules = approach.rules
    if rules is None:
        return figures(approach, Counter({0: len(vectors)}))
    dim = len(vectors[0]) if len(vectors) else 1
    policy = eviction_policy(eviction or approach.eviction, after_hits=rules.insert is Insert.ALL)
    catalog = Catalog(rules, policy, capacity or len(vectors) * 16, index or (lambda: VectorIndex(dim)))
    served: Counter[int] = Counter()
    evicted = 0
    for i, vector in enumerate(vectors):
        partition = partitions[i] if partitions is not None else ""
        found = catalog.find(partition, vector)
        served[found.k] += 1
        if found.match is not None:
            catalog.use(found.match.entry, found.match.k, found.match.wanted)
        kept = catalog.keeps(found, rules.selector.ks)
        evicted += len(catalog.insert(partition, str(i), vector, dict.fromkeys(kept, 1)))
        if progress is not None and i % 256 == 0:
            progress(i, len(vectors))
    if progress is not None:
        progress(len(vectors), len(vectors))
    return figures(approach, served, entries=len(catalog), states=catalog.states, evicted=evicted)


def found_anything(vectors: np.ndarray, approach: Approach) -> np.ndarray:
    """Whether each prompt of a log has a match in an unlimited cache, boolean [N]: the labels for a predictor."""
    assert approach.rules is not None
    _compares_prompts(approach)
    catalog = Catalog(approach.rules, eviction_policy("fifo"), 1 << 60, lambda: VectorIndex(vectors.shape[1]))
    hits = np.zeros(len(vectors), bool)
    for i, vector in enumerate(vectors):
        found = catalog.find("", vector)
        hits[i] = found.match is not None
        catalog.insert("", str(i), vector, dict.fromkeys(catalog.keeps(found, approach.rules.selector.ks), 1))
    return hits


def fit_predictor(
    vectors: np.ndarray, hits: np.ndarray, encoder: str, *, nu: float, gamma: float
) -> tuple[MatchPredictor, dict[str, Any]]:
    """Fits the match predictor on the first half of a log, and measures on the second whether it saves time.

    Args:
        vectors: unit vectors of the prompts, [N, D].
        hits: :func:`found_anything`, [N].
        encoder, nu, gamma: see :meth:`cache.policy.predictor.MatchPredictor.fit`.
    """
    half = len(vectors) // 2
    fitted = MatchPredictor.fit(vectors[:half][hits[:half]], encoder, nu=nu, gamma=gamma)
    measured = fitted.measure(vectors[half:], hits[half:])
    index = VectorIndex(vectors.shape[1])
    index.add_many(range(half), vectors[:half])
    some = vectors[half : half + 200]
    prediction_s, search_s = _seconds(fitted.likely, some), _seconds(lambda vector: index.search(vector, 4), some)
    return fitted, {
        "precision": measured.precision,
        "recall": measured.recall,
        "hit_ratio": measured.hit_ratio,
        "kept": measured.kept,
        "hits_lost": (1 - measured.recall) * measured.hit_ratio,
        "prediction_s": prediction_s,
        "search_s": search_s,
        "pays": prediction_s < (1 - measured.kept) * search_s and measured.recall > 0.99,
    }


def _seconds(work: Callable[[np.ndarray], object], vectors: np.ndarray) -> float:
    """Mean seconds of a call."""
    begin = time.perf_counter()
    for vector in vectors:
        work(vector)
    return (time.perf_counter() - begin) / len(vectors)


def _compares_prompts(approach: Approach) -> None:
    """Raises ConfigError if the approach needs images."""
    by_confidence = approach.rules is not None and approach.rules.selector.by is By.CONFIDENCE
    if approach.between != "prompts" or by_confidence:
        how = " by confidence" if by_confidence else ""
        raise ConfigError(
            f"{approach.name}{how} compares prompts with images, and a log has none; `python -m "
            "benchmarks.cache_quality` generates them"
        )


@dataclass(frozen=True, slots=True)
class Log:
    """A log: prompts, or similarities, or both."""

    prompts: list[str]
    similarities: list[float]


def read_prompts(path: Path) -> list[str]:
    """Reads the prompts of a log.

    Raises:
        ConfigError: as :func:`read_log`; or the log has similarities only.
    """
    prompts = read_log(path).prompts
    if not prompts:
        raise ConfigError(f"{path}: prompts are needed, and the log has none; add a column {_PROMPT_COLUMNS[0]!r}")
    return prompts


def read_log(path: Path) -> Log:
    """Reads a CSV with a column of similarities (``Scores``, ``similarity``) or prompts, or a file of one prompt a
    line.

    Raises:
        ConfigError: the log is invalid; the message names the file, the line and the remedy.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # with or without a byte order mark
            if path.suffix.lower() not in (".csv", ".tsv"):
                lines = [line.strip() for line in file]
                prompts = [line for line in lines if line]
                if not prompts:
                    raise ConfigError(f"{path}: the log is empty; give one prompt a line")
                return Log(prompts, [])
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            header = [name.strip().lower() for name in next(reader, [])]
            scores = next((i for i, name in enumerate(header) if name in _SIMILARITY_COLUMNS), None)
            texts = next((i for i, name in enumerate(header) if name in _PROMPT_COLUMNS), None)
            if scores is None and texts is None:
                raise ConfigError(
                    f"{path}: line 1: no column of similarities ({', '.join(_SIMILARITY_COLUMNS)}) or prompts "
                    f"({', '.join(_PROMPT_COLUMNS)}); found: {', '.join(header) or 'nothing'}"
                )
            log = Log([], [])
            for row in reader:
                if not row:
                    continue
                if scores is not None:
                    log.similarities.append(_similarity(path, reader.line_num, row, scores))
                if texts is not None and texts < len(row):
                    log.prompts.append(row[texts])
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a log: {error}") from None
    if not log.similarities and not log.prompts:
        raise ConfigError(f"{path}: the log has a header and no rows")
    return log


def _similarity(path: Path, line: int, row: list[str], column: int) -> float:
    text = row[column] if column < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1.01 <= value <= 1.01:  # also refuses NaN
        raise ConfigError(f"{path}: line {line}: the similarity is {text!r}; it must be a number in −1…1")
    return value

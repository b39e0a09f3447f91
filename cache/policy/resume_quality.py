"""Quality of resumed images relative to whole runs, as measured by ``weir cache profile``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache.policy.selector import PUBLISHED, Selector, load_selector
from weir.errors import ConfigError
from weir.json_files import read_json


@dataclass(frozen=True)
class ResumeQuality:
    """Measurements by similarity of the two prompts (or confidence in the cached image) and by K.

    Attributes:
        similarity: middle of each bin, ascending, [B].
        pairs: number of measured pairs in the bin, [B].
        ratio: by K, quality of resumed images divided by that of whole runs, [B].
        ran: by K, mean number of steps that ran, [B]; empty: the steps after K.
    """

    similarity: np.ndarray
    pairs: np.ndarray
    ratio: dict[int, np.ndarray]
    ran: dict[int, np.ndarray] = field(default_factory=dict)

    def mean(self, selector: Selector) -> float:
        """Mean ratio of the images that the selector resumes, each at its K; at most 1, and 1 without measurements."""
        ks = [selector.select(similarity) for similarity in self.similarity.tolist()]
        rows = [(n, self.ratio[k][b]) for b, (k, n) in enumerate(zip(ks, self.pairs, strict=True)) if k]
        total = sum(n for n, _ in rows)
        return min(1.0, float(sum(n * ratio for n, ratio in rows) / total)) if total else 1.0

    def hits(self, selector: Selector) -> tuple[float, float]:
        """The share of the measured pairs that the selector resumes, and the mean number of steps that ran for them."""
        ks = [selector.select(similarity) for similarity in self.similarity.tolist()]
        ran = [self.ran[k][b] if k in self.ran else selector.left(k) for b, k in enumerate(ks)]
        resumed = self.pairs * (np.array(ks) > 0)
        total = float(resumed.sum())
        return total / float(self.pairs.sum()), float(resumed @ np.array(ran)) / total if total else selector.steps

    def at(self, similarities: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
        """The expected ratio of each similarity (rows) at each of ``ks``, ascending.

        It is at most 1, rises with the similarity (isotonic regression) and falls with K, so that no lucky pair
        decides.
        """
        from scipy.optimize import isotonic_regression

        columns = []
        for k in ks:
            rising = np.minimum(isotonic_regression(self.ratio[k], weights=self.pairs).x, 1.0)
            columns.append(np.interp(similarities, self.similarity, rising))
        return np.minimum.accumulate(np.stack(columns, axis=1), axis=1)


def load_resume_quality(source: str | Path) -> ResumeQuality:
    """Reads a cache profile.

    Raises:
        ConfigError: the file is invalid, or ``source`` is a published selector, which has no measurements; the message
            names the remedy.
    """
    if str(source) in PUBLISHED:
        raise ConfigError(f"{source}: has no measurements of resumed images; make a profile with `weir cache profile`")
    ks = load_selector(source).ks
    try:
        rows = read_json(Path(source))["measured"]
        middles = np.array([(row["from"] + row["to"]) / 2 for row in rows], float)
        pairs = np.array([row["pairs"] for row in rows], float)
        ratio = {k: np.array([row["ratio"][str(k)] for row in rows], float) for k in ks}
        ran = {k: np.array([row["steps"][str(k)] for row in rows], float) for k in ks if rows and "steps" in rows[0]}
        measured = [middles, pairs, *ratio.values(), *ran.values()]
        if not len(rows) or not np.isfinite(measured).all() or pairs.min() <= 0:
            raise ValueError("its measurements are not numbers, or there are none")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{source}: not a cache profile ({error}); make one with `weir cache profile`") from None
    return ResumeQuality(middles, pairs, ratio, ran)


def resumed_share(source: str | Path) -> float:
    """The quality of a resumed image that plans assume: the measured mean ratio, or 1 for a published selector.

    Raises:
        ConfigError: as :func:`load_resume_quality`.
    """
    return 1.0 if str(source) in PUBLISHED else load_resume_quality(source).mean(load_selector(source))

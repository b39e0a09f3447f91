"""The match predictor: predicts whether a prompt has a match, by a one-class SVM on the embeddings of prompts that had.

NIRVANA uses it before the search, so that likely misses skip the retrieval. With an index on the same machine the
search costs less than a false negative, so it is off unless a file is configured; ``weir cache fit-predictor`` measures
whether it pays. The file has the support vectors as safetensors: nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from weir.errors import ConfigError
from weir.files import written_whole

_FORMAT = "1"
#: Largest sample: the number of support vectors, and so the time of a prediction, grows with it.
_MOST = 5_000


@dataclass(frozen=True, slots=True)
class Measured:
    """The quality of predictions on held-out prompts. "Positive" is a predicted hit.

    Attributes:
        hit_ratio: share of these prompts that have a match.
        kept: share of these prompts that would still be looked up.
    """

    precision: float
    recall: float
    hit_ratio: float
    kept: float


class MatchPredictor:
    """f(x) = Σ α_i exp(−γ |x − v_i|²) − ρ ≥ 0 (Schölkopf et al. 2001), as scikit-learn's ``OneClassSVM`` fits it."""

    def __init__(self, support: np.ndarray, weights: np.ndarray, gamma: float, offset: float, encoder: str):
        self._support = np.ascontiguousarray(support, np.float32)
        self._weights = np.asarray(weights, np.float32)
        self._gamma = gamma
        self._offset = offset
        self.encoder = encoder

    @classmethod
    def fit(
        cls, hits: np.ndarray, encoder: str, *, nu: float = 0.1, gamma: float = 2.0, seed: int = 0
    ) -> MatchPredictor:
        """Fits the region of the prompts that have a match.

        Args:
            hits: unit vectors of the prompts, [N, D].
            nu: share of them that may fall outside.
            gamma: inverse width of the kernel; distances of unit vectors are 0…2.

        Raises:
            ConfigError: there are too few prompts.
        """
        from sklearn.svm import OneClassSVM

        if len(hits) < 50:
            raise ConfigError(f"a match predictor needs at least 50 prompts with a hit; the log has {len(hits)}")
        rng = np.random.default_rng(seed)
        sample = hits if len(hits) <= _MOST else hits[rng.choice(len(hits), _MOST, replace=False)]
        model = OneClassSVM(kernel="rbf", nu=nu, gamma=gamma).fit(sample)
        return cls(model.support_vectors_, model.dual_coef_[0], gamma, -float(model.intercept_[0]), encoder)

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """The decision function, [B]; at least 0 predicts a hit."""
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        squares = (vectors**2).sum(1)[:, None] + (self._support**2).sum(1) - 2 * vectors @ self._support.T
        return np.exp(-self._gamma * squares) @ self._weights - self._offset

    def likely(self, vector: np.ndarray) -> bool:
        return bool(self.scores(vector)[0] >= 0)

    def measure(self, vectors: np.ndarray, hit: np.ndarray) -> Measured:
        """Measures the predictions against the outcomes ``hit``, boolean [N]."""
        predicted = self.scores(vectors) >= 0
        right = float((predicted & hit).sum())
        return Measured(
            precision=right / max(1, int(predicted.sum())),
            recall=right / max(1, int(hit.sum())),
            hit_ratio=float(hit.mean()),
            kept=float(predicted.mean()),
        )

    def save(self, path: Path) -> None:
        """Writes the file atomically.

        Raises:
            ConfigError: it cannot be written.
        """
        about = {
            "format": _FORMAT,
            "encoder": self.encoder,
            "gamma": repr(self._gamma),
            "offset": repr(self._offset),
        }
        with written_whole(path) as draft:
            draft.write_bytes(save({"support": self._support, "weights": self._weights}, metadata=about))

    @classmethod
    def load(cls, path: Path, encoder: str | None = None) -> MatchPredictor:
        """Reads a file that :meth:`save` wrote.

        Raises:
            ConfigError: the file is not a predictor, or was fitted on vectors of another encoder than ``encoder``.
        """
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise ValueError(f"format {about.get('format')}")
                support, weights = file.get_tensor("support"), file.get_tensor("weights")
            found = cls(support, weights, float(about["gamma"]), float(about["offset"]), about["encoder"])
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise ConfigError(f"cache.predictor: {path}: not a match predictor ({error})") from None
        if encoder is not None and found.encoder != encoder:
            raise ConfigError(
                f"cache.predictor: {path}: fitted on vectors of {found.encoder}, the cache's encoder is {encoder}; fit "
                "it again"
            )
        return found

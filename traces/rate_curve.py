"""Demand over time as a piecewise constant rate, and sampling of arrivals from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weir.errors import ConfigError

#: Largest number of requests of a trace, to bound its memory.
MOST_REQUESTS = 10_000_000


def check_count(requests: float) -> None:
    """Checks that a trace of that many requests fits in memory.

    Raises:
        ConfigError: it is larger than :data:`MOST_REQUESTS`.
    """
    if requests > MOST_REQUESTS:
        raise ConfigError(
            f"{requests:.3g} requests are too many for one trace; give a rate for at most {MOST_REQUESTS}"
        )


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A piecewise constant demand: ``rates_rps[i]`` from ``edges_s[i]`` to ``edges_s[i + 1]``, starting at 0 s.

    Raises:
        ConfigError: the edges do not ascend from 0, or a rate is negative or not finite.
    """

    edges_s: tuple[float, ...]
    rates_rps: tuple[float, ...]

    def __post_init__(self) -> None:
        edges, rates = np.asarray(self.edges_s, float), np.asarray(self.rates_rps, float)
        if len(edges) != len(rates) + 1 or not len(rates):
            raise ConfigError(f"a rate curve of {len(rates)} rates needs {len(rates) + 1} edges, not {len(edges)}")
        if edges[0] != 0 or not np.all(np.diff(edges) > 0) or not np.isfinite(edges[-1]):
            raise ConfigError("the edges of a rate curve must ascend from 0 s")
        if not np.all(np.isfinite(rates)) or np.any(rates < 0):
            raise ConfigError("the rates of a rate curve must be finite and at least 0 requests/s")

    @property
    def duration_s(self) -> float:
        return self.edges_s[-1]

    @property
    def expected(self) -> float:
        """Expected number of requests of the whole curve."""
        return float(self.cumulative[-1])

    @property
    def cumulative(self) -> np.ndarray:
        """Expected number of requests before each edge."""
        return np.concatenate([[0.0], np.cumsum(np.diff(self.edges_s) * self.rates_rps)])

    def requests_before(self, t_s: Sequence[float] | np.ndarray) -> np.ndarray:
        """Expected number of requests before each of the given times (operational time)."""
        return np.interp(t_s, self.edges_s, self.cumulative)

    def time_of(self, requests: Sequence[float] | np.ndarray) -> np.ndarray:
        """The inverse of :meth:`requests_before`; its times never lie inside an interval without demand."""
        cumulative, edges = self.cumulative, np.asarray(self.edges_s)
        # Not np.interp: where the curve is flat, the inverse jumps to the end of the interval.
        i = np.clip(np.searchsorted(cumulative, requests, side="right") - 1, 0, len(self.rates_rps) - 1)
        rates = np.asarray(self.rates_rps)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(rates[i] > 0, (np.asarray(requests) - cumulative[i]) / rates[i], 0.0)
        return np.minimum(edges[i] + inside, edges[i + 1])

    def sample_arrivals(self, seed: int, cv: float | None = None) -> np.ndarray:
        """Samples sorted arrivals in seconds, with the expected number :attr:`expected`.

        A renewal process in operational time: gaps are exponential (``cv`` None: Poisson) or gamma with the coefficient
        of variation ``cv`` (below 1 more regular, above 1 burstier). The first gap comes from the equilibrium
        distribution (Cox, Renewal Theory, 1962, section 2.2), without which a high cv would give too many requests.

        Raises:
            ConfigError: cv is not positive, or there would be too many requests.
        """
        check_count(self.expected)
        rng = np.random.default_rng(seed)
        if cv is None:
            cv = 1.0
        if not (np.isfinite(cv) and cv > 0):
            raise ConfigError(f"cv is {cv}; it must be above 0 (1 is Poisson)")
        shape, scale, total = cv**-2, cv**2, self.expected
        points = [rng.random() * rng.gamma(shape + 1, scale)]
        while points[-1] < total:
            block = rng.gamma(shape, scale, size=max(64, int(total)))
            points.extend(points[-1] + np.cumsum(block))
        arrivals = np.asarray(points)
        return self.time_of(arrivals[arrivals < total])

"""The requests of a trace as a service sees them: what its cache has for each, and what each of its images is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.encoder import family_encoder
from cache.policy.resume_quality import load_worth
from cache.policy.selector import By, load_selector
from controller.setting import QualityCurve, Setting
from simulator.arrivals import Arrivals, laid_anew, trace_arrivals
from simulator.confidences import drawn
from traces.trace import Trace
from weir.config import load_service
from weir.errors import ConfigError
from weir.profiles import Profile, load_profile


@dataclass(frozen=True)
class Workload:
    """One trace against one service.

    Attributes:
        ks: steps that each request may skip by the cache's thresholds, [N]; 0 is a miss.
        ladder: steps that can be skipped at all, ascending from 0.
        worth: of each request's image resumed at each of ``ladder``, as a share of the whole run's, [N, L].
        confidences: of the light image of each request, [N].
    """

    setting: Setting
    profile: Profile
    arrivals: Arrivals
    ks: np.ndarray
    ladder: tuple[int, ...]
    worth: np.ndarray
    confidences: np.ndarray

    @property
    def curve(self) -> QualityCurve:
        assert self.setting.quality is not None  # it was checked
        return self.setting.quality

    @property
    def steps(self) -> int:
        return self.profile.heavy.steps

    @property
    def saved(self) -> np.ndarray:
        """Share of the heavy steps that the cache saves each request, [N]."""
        return self.ks / self.steps

    @property
    def kinds(self) -> np.ndarray:
        """Of each request the place of its K in ``ladder``, [N]."""
        return np.searchsorted(self.ladder, self.ks)

    @property
    def own_worth(self) -> np.ndarray:
        """Of each request's image resumed at its own K, as a share of the whole run's, [N]."""
        return self.worth[np.arange(len(self.ks)), self.kinds]


def service_workload(
    service_path: Path,
    trace: Trace,
    *,
    gpus: int,
    slo_s: float | None = None,
    rate: float = 1.0,
    redraw: int | None = None,
    seed: int = 0,
) -> Workload:
    """A trace of prompts against the service of a file.

    A request finds the nearest earlier prompt of the trace, as if the cache had kept all of them. Similarities are of
    the service's own encoder, the K of its own thresholds, and what a resumed image is worth of its cache profile.
    Under a profile by confidence, which would take pictures, requests are hits at random, as often as they were when it
    was measured, and each saves what they saved on average.
    Prompts that come again because the demand was scaled count as what they were the first time.

    Args:
        slo_s: None takes the service's.
        rate, redraw: see :func:`simulator.arrivals.laid_anew`.

    Raises:
        ConfigError: names the file and what is missing there.
    """
    service, family = load_service(service_path)
    source = service.profile or service.pool.emulate
    if source is None:
        raise ConfigError(
            f"{service_path}: names no profile; make one with `weir profile` and name it in the key profile"
        )
    profile = load_profile(source)
    if profile.quality is None or profile.quality.smaller_is_better or not profile.confidences:
        raise ConfigError(
            f"{source}: to compare cascades, caches and levels a profile needs confidences and the quality of mixes, "
            "on a scale where more is better; `weir calibrate` adds both"
        )
    selector, worth = load_selector(service.cache.selector), load_worth(service.cache.selector)
    if selector.steps != profile.heavy.steps:
        raise ConfigError(
            f"{service.cache.selector}: measured on runs of {selector.steps} steps, and the profile has "
            f"{profile.heavy.steps}; measure again with `weir cache profile`"
        )
    arrivals = laid_anew(trace_arrivals(trace), rate, redraw)
    if selector.by is By.SIMILARITY:
        first = nearest_earlier(family_encoder(family, service.cache.encoder).encode(list(trace.prompts)))
        similarities = first[np.arange(len(arrivals)) % max(1, len(first))]
        ladder = selector.ks
        ks = np.array([selector.select(s) for s in similarities.tolist()], int)
        resumed = worth.at(similarities, ladder)
    else:
        share, ran = worth.hits(selector)
        ladder = (round(selector.steps - ran),)
        ks = np.where(np.random.default_rng(seed).random(len(arrivals)) < share, ladder[0], 0)
        resumed = np.full((len(arrivals), 1), worth.mean(selector))
    setting = Setting.of(profile, gpus, slo_s or service.slo_s, resumed=worth.mean(selector))
    return Workload(
        setting=setting,
        profile=profile,
        arrivals=arrivals,
        ks=ks,
        ladder=(0, *ladder),
        worth=np.concatenate([np.ones((len(arrivals), 1)), resumed], axis=1),
        confidences=drawn(setting.deferral, len(arrivals), seed),
    )


def nearest_earlier(vectors: np.ndarray, block: int = 512) -> np.ndarray:
    """Of each of a log's unit vectors, [N, D], the cosine to the nearest one before it; −1 for the first."""
    found = np.full(len(vectors), -1.0)
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        cosines = rows @ vectors[: start + len(rows)].T
        earlier = np.arange(cosines.shape[1]) < start + np.arange(len(rows))[:, None]
        found[start : start + len(rows)] = np.where(earlier, cosines, -1.0).max(axis=1)
    return found

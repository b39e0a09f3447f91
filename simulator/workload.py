"""Workload of a service: the requests of a trace with their cache lookups and the quality of their images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache.encoder import family_encoder
from cache.policy.resume_quality import ResumeQuality, load_resume_quality
from cache.policy.selector import By, Selector, load_selector
from controller.service_ladder import PromptClass, StoredStates, ladder_of
from controller.setting import QualityCurve, Setting
from simulator.arrivals import Arrivals, resampled, trace_arrivals
from simulator.confidences import confidences_of
from simulator.request_stream import RequestStream
from traces.trace import Trace
from weir.config import FamilyConfig, ServiceConfig, load_service
from weir.core import CacheLookup, Resume
from weir.errors import ConfigError
from weir.profiles import Profile, load_profile


@dataclass(frozen=True)
class Workload:
    """One trace on one service.

    Attributes:
        setting: setting of the service; its ladder divides prompts by the K that their similarity admits.
        requests: the requests with their cache lookups.
        ks: K of each request by the thresholds of the cache, [N]; 0 is a miss.
        ladder: every such K, ascending from 0.
        worth: quality of each request's image when resumed at each K of ``ladder``, as a share of the whole run's,
            [N, L].
        direct: least share of saved steps for which a hit starts at the last variant, unless the plan has its own.
    """

    setting: Setting
    profile: Profile
    requests: RequestStream
    ks: np.ndarray
    ladder: tuple[int, ...]
    worth: np.ndarray
    direct: float = 0.0

    @property
    def arrivals(self) -> Arrivals:
        """Arrival times of the requests."""
        return self.requests.arrivals

    @property
    def steps(self) -> int:
        """Denoising steps of a whole run of the last variant."""
        return self.profile.heavy.steps

    @property
    def saved(self) -> np.ndarray:
        """Share of the last variant's steps that the cache would save each request, [N]."""
        return np.array([lookup.saved(self.steps) for lookup in self.requests.lookups])

    @property
    def own_resumed_quality(self) -> np.ndarray:
        """Quality of each request's image when resumed at its own K, as a share of the whole run's, [N]."""
        return self.resumed_quality_at(self.ks)

    def resumed_quality_at(self, resumed_at: np.ndarray) -> np.ndarray:
        """Returns the quality of each request's image when resumed at its entry of ``resumed_at``, as a share of the
        whole run's, [N]."""
        return self.worth[np.arange(len(resumed_at)), np.searchsorted(self.ladder, resumed_at)]

    def curve(self, variant: str) -> QualityCurve:
        """Returns the quality of mixes of a variant with the last one, by the variant's share."""
        found = self.profile.variant(variant).quality
        assert found is not None  # it was checked
        return QualityCurve(found.values, found.smaller_is_better)

    def share_of_whole(self, variant: str) -> float:
        """Returns the mean quality of a variant's images as a share of the last variant's."""
        curve = self.curve(variant)
        return curve.at(1.0) / curve.at(0.0)


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
    """Builds the workload of a trace of prompts on the service of a file.

    A request finds the nearest earlier prompt of the trace, as if the cache kept all of them. Similarities come from
    the service's encoder, K from its thresholds, and the quality of a resumed image from its cache profile. A profile
    by confidence would need images; there, hits are random with the measured frequency, and the measured share of
    resumed images is doubted. Prompts that repeat because the demand was scaled keep their first lookup.

    Args:
        slo_s: deadline, seconds; None uses the service's.
        rate, redraw: see :func:`simulator.arrivals.resampled`.

    Raises:
        ConfigError: names the file and what is missing there.
    """
    service, family = load_service(service_path)
    profile = _comparable_profile(service_path, service, family)
    selector, worth = load_selector(service.cache.selector), load_resume_quality(service.cache.selector)
    if selector.steps != profile.heavy.steps:
        raise ConfigError(
            f"{service.cache.selector}: measured on runs of {selector.steps} steps, and the profile has "
            f"{profile.heavy.steps}; measure again with `weir cache profile`"
        )
    arrivals, slo_s = resampled(trace_arrivals(trace), rate, redraw), slo_s or service.slo_s
    count = len(arrivals)
    if selector.by is By.SIMILARITY:
        first = nearest_earlier(family_encoder(family, service.cache.encoder).encode(list(trace.prompts)))
        matches = _matches_by_similarity(first[np.arange(count) % max(1, len(first))], selector, worth)
    else:
        matches = _matches_by_confidence(count, seed, selector, worth)
    ladder = (0, *(selector.ks if selector.by is By.SIMILARITY else selector.ks[-1:]))
    every = np.concatenate([np.ones((count, 1)), matches.resumed], axis=1)
    kinds = np.searchsorted(ladder, matches.ks)
    setting = Setting.of(profile, gpus, slo_s, resumed=worth.mean(selector))
    states, classes = _classes(profile, ladder, kinds, every)
    return Workload(
        setting=replace(setting, ladder=ladder_of(profile, slo_s, states, classes)),
        profile=profile,
        requests=RequestStream(
            arrivals,
            confidences_of(setting, count, seed),
            resumed=matches.doubts,
            lookups=_lookups(selector, ladder, kinds, matches.similarities),
            draws=np.random.default_rng((seed, 1)).random(count),
        ),
        ks=matches.ks,
        ladder=ladder,
        worth=every,
        direct=service.cache.direct,
    )


@dataclass(frozen=True, slots=True)
class _Matches:
    """Cache matches of N requests.

    Attributes:
        similarities: cosine to the matched prompt, [N].
        ks: K of each request, [N]; 0 is a miss.
        resumed: quality of the image resumed at each K above 0, as a share of the whole run's, [N, L − 1].
        doubts: confidence in the resumed image, [N]; empty when resumed images are not judged.
    """

    similarities: np.ndarray
    ks: np.ndarray
    resumed: np.ndarray
    doubts: np.ndarray


def _matches_by_similarity(similarities: np.ndarray, selector: Selector, worth: ResumeQuality) -> _Matches:
    """Returns the matches whose K follows from the similarity."""
    ks = np.array([selector.select(s) for s in similarities.tolist()], int)
    return _Matches(similarities, ks, worth.at(similarities, selector.ks), np.empty(0))


def _matches_by_confidence(count: int, seed: int, selector: Selector, worth: ResumeQuality) -> _Matches:
    """Returns random matches with the measured frequencies of hits and of doubted images."""
    share, ran = worth.hits(selector)
    chance, [k] = np.random.default_rng(seed), selector.ks[-1:]
    ks = np.where(chance.random(count) < share, k, 0)
    doubted = (ran - selector.left(k)) / selector.steps
    doubts = np.where(chance.random(count) < doubted, 0.0, 1.0)
    return _Matches(np.where(ks > 0, 1.0, 0.0), ks, np.full((count, 1), worth.mean(selector)), doubts)


def _comparable_profile(path: Path, service: ServiceConfig, family: FamilyConfig) -> Profile:
    """The profile of a service with the quality of every mix.

    Raises:
        ConfigError: there is none, or it lacks a measurement.
    """
    source = service.profile or service.pool.emulate
    if source is None:
        raise ConfigError(f"{path}: the key profile is missing; make a profile with `weir profile` and name it there")
    profile = load_profile(source, family.keys, family.size)
    for key in profile.keys[:-1]:
        variant = profile.variant(key)
        if variant.quality is None or variant.quality.smaller_is_better or not variant.confidences:
            raise ConfigError(
                f"{source}: to compare cascades, caches and levels a profile needs confidences and the quality of "
                f"mixes of {key}, on a scale where more is better; `weir calibrate` adds both"
            )
    return profile


def _classes(
    profile: Profile, ladder: tuple[int, ...], kinds: np.ndarray, worth: np.ndarray
) -> tuple[StoredStates, list[PromptClass]]:
    """Returns the quality of the cache's states for all prompts, and by the class of prompts that each K defines."""
    shares = np.bincount(kinds, minlength=len(ladder)) / max(1, len(kinds))
    means = worth.mean(axis=0) if len(worth) else np.ones(len(ladder))
    own = {key: measured.values[-1] / measured.values[0] for key, measured in _measured(profile)}
    classes = []
    for kind, share in enumerate(shares.tolist()):
        column = worth[kinds == kind].mean(axis=0) if share else means
        by_level = {f"K={k}": float(value) for k, value in zip(ladder, column, strict=True)}
        classes.append(PromptClass(share, by_level | own))
    states = StoredStates(
        {k: float(mean) for k, mean in zip(ladder[1:], means[1:], strict=True)},
        dict(zip(ladder, shares.tolist(), strict=True)),
    )
    return states, classes


def _measured(profile: Profile) -> list[tuple[str, QualityCurve]]:
    found = ((key, profile.variant(key).quality) for key in profile.keys[:-1])
    return [(key, QualityCurve(it.values, it.smaller_is_better)) for key, it in found if it is not None]


def _lookups(
    selector: Selector, ladder: tuple[int, ...], kinds: np.ndarray, similarities: np.ndarray
) -> list[CacheLookup]:
    """Returns the cache lookup of each request; all states of the nearest prompt exist."""
    stored = tuple((k, f"state:{k}") for k in ladder[1:])
    found = []
    for kind, similarity in zip(kinds.tolist(), similarities.tolist(), strict=True):
        k = ladder[kind]
        resume = Resume(f"state:{k}", k, selector.stride, selector.accept) if k else None
        near = similarity > -1
        found.append(
            CacheLookup(
                partition="simulated",
                similarity=similarity if near else None,
                entry="nearest" if near else None,
                resume=resume,
                stored=stored if near else (),
                prompt_class=kind,
            )
        )
    return found


def nearest_earlier(vectors: np.ndarray, block: int = 512) -> np.ndarray:
    """Returns for each unit vector of a log, [N, D], the cosine to the nearest earlier one; −1 for the first."""
    found = np.full(len(vectors), -1.0)
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        cosines = rows @ vectors[: start + len(rows)].T
        earlier = np.arange(cosines.shape[1]) < start + np.arange(len(rows))[:, None]
        found[start : start + len(rows)] = np.where(earlier, cosines, -1.0).max(axis=1)
    return found

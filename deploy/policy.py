"""Construction of the policy of a service from its files. It does not use Ray, so it is checked before anything
starts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cache.policy.resume_quality import load_resume_quality, resumed_share
from cache.policy.selector import PUBLISHED, By, load_selector
from controller.policy import Policy
from controller.registry import POLICIES, make_policy
from controller.service_ladder import StoredStates
from controller.setting import Setting
from weir.config import CacheConfig, ServiceConfig
from weir.errors import WeirError
from weir.profiles import load_profile
from weir.prompt_levels import LevelHead


def stored_states(cache: CacheConfig, steps: int) -> StoredStates | None:
    """Returns the quality of resuming at each K of a cache; None without a cache, or when it was not measured by
    similarity.

    Args:
        steps: number of steps of a whole run; the cache profile must have the same number.

    Raises:
        ConfigError: the cache profile is invalid.
    """
    if cache.mode == "off" or cache.selector in PUBLISHED:
        return None
    selector, worth = load_selector(cache.selector), load_resume_quality(cache.selector)
    if selector.by is not By.SIMILARITY or selector.steps != steps or not selector.ks:
        return None
    weights = worth.pairs / worth.pairs.sum()
    mean = weights @ worth.at(worth.similarity, selector.ks)
    shares = dict.fromkeys((0, *selector.ks), 0.0)
    for similarity, weight in zip(worth.similarity.tolist(), weights.tolist(), strict=True):
        shares[selector.select(similarity)] += weight
    return StoredStates(dict(zip(selector.ks, mean.tolist(), strict=True)), shares)


def policy_of(
    service: ServiceConfig, levels: LevelHead | None = None, name: str = "", replicas: int | None = None
) -> Policy:
    """Makes a new policy for a service.

    Args:
        name: another policy than the configured one.
        replicas: another number of replicas than the configured one.
        levels: the level head in force; None when prompts are not distinguished.

    Raises:
        ConfigError: the profile is invalid, or the service lacks a measurement that the policy needs.
    """
    source = service.profile or service.pool.emulate
    assert source is not None  # checked by the configuration
    profile = load_profile(source)
    resumed = resumed_share(service.cache.selector) if service.cache.mode != "off" else 1.0
    states = stored_states(service.cache, profile.heavy.steps)
    setting = Setting.of(profile, replicas or service.plan.size, service.slo_s, levels, resumed, states)
    return make_policy(name or service.controller.policy, setting)


def level_head(service: ServiceConfig) -> LevelHead | None:
    """Reads the level head of a service; None where prompts are not distinguished.

    Raises:
        ConfigError: the file is invalid.
    """
    return None if service.cache.levels is None else LevelHead.load(Path(service.cache.levels))


def refusal(name: str, service: ServiceConfig, variants: Collection[str]) -> str:
    """Returns why a policy cannot plan for a running service; empty if it can.

    Only registered names and the configured policy are accepted, so that no request makes the controller import other
    code.

    Args:
        variants: keys of the variants that the replicas hold.
    """
    known = tuple(dict.fromkeys((*POLICIES, service.controller.policy)))
    if name not in known:
        return f"policy is {name[:64]!r}; accepted: {', '.join(known)}"
    try:
        policy_of(service, level_head(service), name).first_plan().check(variants)
    except WeirError as error:
        return f"policy {name} cannot plan for this service: {error.message}"
    return ""

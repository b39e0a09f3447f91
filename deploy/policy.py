"""The policy of a service, from its files: without Ray, so that it is checked before anything starts."""

from __future__ import annotations

from cache.policy.resume_quality import load_worth, resumed_share
from cache.policy.selector import PUBLISHED, By, load_selector
from controller.policy import Policy
from controller.registry import make_policy
from controller.service_ladder import StoredStates
from controller.setting import Setting
from weir.config import CacheConfig, ServiceConfig
from weir.profiles import load_profile
from weir.prompt_levels import LevelHead


def stored_states(cache: CacheConfig, steps: int) -> StoredStates | None:
    """What resuming at each K of a cache is worth; None without a cache, or where it was not measured by similarity.

    Args:
        steps: of a whole run, which the cache profile has to be of.

    Raises:
        ConfigError: the cache profile is not what it should be.
    """
    if cache.mode == "off" or cache.selector in PUBLISHED:
        return None
    selector, worth = load_selector(cache.selector), load_worth(cache.selector)
    if selector.by is not By.SIMILARITY or selector.steps != steps or not selector.ks:
        return None
    weights = worth.pairs / worth.pairs.sum()
    mean = weights @ worth.at(worth.similarity, selector.ks)
    shares = dict.fromkeys((0, *selector.ks), 0.0)
    for similarity, weight in zip(worth.similarity.tolist(), weights.tolist(), strict=True):
        shares[selector.select(similarity)] += weight
    return StoredStates(dict(zip(selector.ks, mean.tolist(), strict=True)), shares)


def policy_of(service: ServiceConfig, levels: LevelHead | None = None) -> Policy:
    """A fresh policy of a service.

    Args:
        levels: the head in force; None where prompts are not told apart.

    Raises:
        ConfigError: the profile is not what it should be, or the policy needs what the service does not have.
    """
    source = service.profile or service.pool.emulate
    assert source is not None  # the configuration was checked
    profile = load_profile(source)
    resumed = resumed_share(service.cache.selector) if service.cache.mode != "off" else 1.0
    states = stored_states(service.cache, profile.heavy.steps)
    setting = Setting.of(profile, service.plan.size, service.slo_s, levels, resumed, states)
    return make_policy(service.controller.policy, setting)

"""The configurations and profiles that ship are valid, and the live controller plans every service."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import checked
from deploy.policy import policy_of
from weir.config import ServiceConfig, load_service, read_yaml
from weir.profiles import load_profile

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGS = sorted((DEPLOY / "configs").glob("*.yaml"))
#: Two kinds of files beside them have their own readers: what the cache trusts, and what a warm start is worth.
OTHERS = ("-cache", "-judged", "-warm-start")
PROFILES = [path for path in sorted((DEPLOY / "profiles").glob("*.json")) if not path.stem.endswith(OTHERS)]


def test_every_family_has_a_configuration():
    expected = {"weir-tiny", "weir-tiny-three", "emulated-16", "sdxl-lightning", "sdxl-turbo", "sd15-turbo"}
    assert expected <= {c.stem for c in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid(path):
    service = read_yaml(path, ServiceConfig)
    assert (path.parent / service.family).exists()
    assert service.http.host == "127.0.0.1"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_service_is_planned_by_the_controller_from_a_profile_of_its_ladder(path):
    service, family = checked(path)
    assert service.controller.policy == "weir"
    measured = service.profile or service.pool.emulate
    assert measured is not None
    assert load_profile(measured).keys == family.keys
    plan = policy_of(service).first_plan().check(family.keys)
    assert len(plan.assignments) == service.plan.size
    assert plan.last == family.keys[-1]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_is_valid_and_each_variant_is_faster_than_the_next(path):
    variants = list(load_profile(path).variants.values())
    for batch_size in (1, 2, 4, 8):
        seconds = [variant.latency.at(batch_size) for variant in variants]
        assert seconds == sorted(set(seconds))


def test_the_times_of_sd15_turbo_equal_those_published_with_diffserve():
    from baselines.published import cascade

    published, profile = cascade("diffserve-1"), load_profile(DEPLOY / "profiles" / "a100-sd15-turbo.json")
    judged = [seconds + published.discriminator_s for seconds in published.light.latency_s]
    assert profile.light.latency.latency_s == pytest.approx(judged)
    assert profile.heavy.latency == published.heavy


def test_the_emulated_cluster_has_sixteen_replicas_and_heavy_fits_its_deadline():
    service, family = load_service(DEPLOY / "configs" / "emulated-16.yaml")
    assert service.pool.emulate
    plan, profile = service.plan.plan(family.keys), load_profile(service.pool.emulate)
    assert len(plan.assignments) == 16
    assert profile.light.name == family.light.name
    assert profile.heavy.name == family.heavy.name
    light, heavy = (profile.variant(key).latency.at(plan.batch_size(key)) for key in family.keys)
    assert light + heavy < service.slo_s

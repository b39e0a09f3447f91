"""The configurations and profiles that ship are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from weir.config import ServiceConfig, load_service, read_yaml
from weir.core import Role
from weir.profiles import load_profile

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGS = sorted((DEPLOY / "configs").glob("*.yaml"))
#: Two kinds of files beside them have their own readers: what the cache trusts, and what a warm start is worth.
OTHERS = ("-cache", "-judged", "-warm-start")
PROFILES = [path for path in sorted((DEPLOY / "profiles").glob("*.json")) if not path.stem.endswith(OTHERS)]


def test_there_is_one_for_every_family():
    assert {"weir-tiny", "emulated-16", "sdxl-lightning", "sdxl-turbo", "sd15-turbo"} <= {c.stem for c in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid(path):
    service = read_yaml(path, ServiceConfig)
    assert (path.parent / service.family).exists()
    assert service.http.host == "127.0.0.1"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_is_valid_and_its_light_variant_is_the_faster_one(path):
    profile = load_profile(path)
    for batch_size in (1, 2, 4, 8):
        assert profile.variant(Role.LIGHT).latency.at(batch_size) < profile.variant(Role.HEAVY).latency.at(batch_size)


def test_the_emulated_cluster_has_sixteen_replicas_and_heavy_fits_its_deadline():
    service, family = load_service(DEPLOY / "configs" / "emulated-16.yaml")
    assert service.pool.emulate
    plan, profile = service.plan.plan(), load_profile(service.pool.emulate)
    assert len(plan.assignments) == 16
    assert profile.light.name == family.light.name
    assert profile.heavy.name == family.heavy.name
    two_stages = profile.light.latency.at(service.plan.light_batch) + profile.heavy.latency.at(service.plan.heavy_batch)
    assert two_stages < service.slo_s

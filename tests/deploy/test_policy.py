"""Which policies may plan for a running service."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.policy import refusal
from tests.deploy.conftest import toy_service
from weir.config import load_service


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "policy is 'nothing'; accepted: weir, weir-levels, diffserve"),
        ("os:system", "policy is 'os:system'; accepted: "),
        ("argus", "policy argus cannot plan for this service: policy argus needs the quality of each variant"),
        ("static", "policy is 'static'; accepted: "),
    ],
)
def test_a_policy_is_refused_by_name_or_by_what_it_lacks(tmp_path: Path, name: str, words: str) -> None:
    service, family = load_service(toy_service(tmp_path, controller={"policy": "weir"}))
    assert refusal(name, service, family.keys).startswith(words)


@pytest.mark.parametrize("name", ["weir", "all-heavy", "all-light", "proteus"])
def test_a_policy_that_has_what_it_needs_is_accepted(tmp_path: Path, name: str) -> None:
    service, family = load_service(toy_service(tmp_path, controller={"policy": "weir"}))
    assert refusal(name, service, family.keys) == ""


def test_a_policy_of_the_service_file_is_accepted_by_its_own_name(tmp_path: Path) -> None:
    own = "baselines.all_heavy:AllHeavy"
    service, family = load_service(toy_service(tmp_path, controller={"policy": own}))
    assert refusal(own, service, family.keys) == ""

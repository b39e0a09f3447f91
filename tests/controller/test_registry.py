"""Tests of the registry: every policy has one name, and an error names the missing measurement."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from controller.policy import Policy
from controller.registry import POLICIES, make_policy, names, policy_class, system_of
from controller.setting import Setting
from tests.controller.test_policies import LADDER, setting
from weir.approximation_levels import Ladder, Strategy
from weir.config import ControllerConfig
from weir.errors import ConfigError
from weir.plan import Plan


class Mine(Policy):
    """A user-defined policy."""

    name = "mine"

    def first_plan(self) -> Plan:
        return self.one_variant(self.setting.last, 1)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_registered_under_its_own_name(name):
    assert make_policy(name, setting()).name == name


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_configured_for_a_service(name):
    assert ControllerConfig(policy=name).policy == name


def test_every_policy_belongs_to_a_system_and_systems_come_with_their_own_policy_first():
    assert (system_of("weir"), system_of("argus"), system_of(f"{__name__}:Mine")) == ("Weir", "Argus", "others")
    first = {POLICIES[name].system: name for name in reversed(POLICIES)}
    assert {system: name for system, name in first.items() if system != "others"} == {
        "Weir": "weir",
        "DiffServe": "diffserve",
        "NIRVANA": "nirvana",
        "Argus": "argus",
    }


def test_policies_for_ladders_are_listed_separately():
    assert set(names(levels=True)) | set(names(levels=False)) == set(names()) == set(POLICIES)
    assert {"argus", "pac", "weir-levels"} <= set(names(levels=True))


def test_a_users_own_class_can_be_a_policy():
    assert make_policy(f"{__name__}:Mine", setting()).first_plan().count("heavy") == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("greedy", r"policy is 'greedy'; known: weir, .*argus.* or module:Class of your own"),
        ("nowhere.at_all:Mine", "policy: nowhere.at_all:Mine: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{__name__}:Theirs", "policy: .*:Theirs: .*has no attribute 'Theirs'"),
        ("fractions:Fraction", "policy: fractions:Fraction is not a subclass of controller.policy.Policy"),
    ],
)
def test_a_name_that_is_no_policy_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        make_policy(name, setting())


@pytest.mark.parametrize("name", ["argus", "pac", "sommelier", "weir-levels"])
def test_the_error_of_a_policy_without_stored_states_names_the_remedy(name):
    whole = [level for level in LADDER.levels if level.strategy is Strategy.SM or not level.skipped_steps]
    bare = Ladder(family="none", device="a100", steps=50, levels=tuple(whole))
    with pytest.raises(ConfigError, match=f"policy {name} needs stored states .*: set cache.mode: read-write"):
        make_policy(name, replace(setting(), ladder=bare))


@pytest.mark.parametrize("name", [name for name in names(levels=True) if name != "nirvana"])
def test_the_error_of_a_policy_without_qualities_names_the_command_that_measures_them(name):
    with pytest.raises(ConfigError, match=f"policy {name} needs the quality of each variant .*weir calibrate"):
        make_policy(name, replace(setting(), ladder=None))


def test_the_controller_imports_no_published_system():
    for path in Path("controller").rglob("*.py"):
        found = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("baselines")
        }
        assert not found, path


def test_every_policy_is_made_from_a_setting():
    for name in POLICIES:
        made = policy_class(name)
        assert isinstance(made(setting()), Policy), Setting

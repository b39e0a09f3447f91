"""The operator's controls: what they hold, when they end, and what is recorded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from load_balancer.action_log import MOST_ACTIONS
from load_balancer.adapter_catalog import AdapterCatalog
from load_balancer.admin_controls import AdminControls, ControlTargets
from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.service_times import ServiceTimes
from load_balancer.pool.replica_registry import ReplicaRegistry
from weir.clocks import Clocks
from weir.errors import Conflict, InvalidRequest
from weir.pin import PinValues
from weir.plan import HEAVY, LIGHT


class Times:
    """Both clocks; only the monotonic one is true."""

    def __init__(self) -> None:
        self.unix, self.monotonic = 1e9, 100.0


class FakeController:
    """Refuses every policy but ``all-heavy``."""

    async def check_policy(self, name: str) -> None:
        if name != "all-heavy":
            raise InvalidRequest(f"policy {name} cannot plan for this service", param="policy")


class FakeCache:
    async def statistics(self) -> dict[str, Any]:
        return {"entries": 3}

    async def purge(self, tenant: str | None) -> dict[str, Any]:
        return {"entries": 3, "values": 18}


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def made(pool, plan, profile, times):
    def make(targets: ControlTargets) -> AdminControls:
        dispatcher = Dispatcher(plan, ServiceTimes(profile), random.Random(1))
        registry = ReplicaRegistry(pool, plan, dispatcher, (LIGHT, HEAVY))
        return AdminControls(
            registry,
            plan,
            (LIGHT, HEAVY),
            AdapterCatalog({}),
            targets,
            clocks=Clocks(lambda: times.monotonic, lambda: times.unix),
        )

    return make


@pytest.fixture
def controls(made) -> AdminControls:
    return made(ControlTargets("weir", FakeController(), FakeCache()))


PIN = PinValues(thresholds={LIGHT: 0.1})


def test_a_pin_ends_by_the_monotonic_clock_whatever_the_wall_clock_says(controls, times):
    controls.pins.set("ops", PIN, 60, "a look")
    times.unix += 1e6
    assert controls.orders()["pin"]["plan"]["thresholds"] == [0.1]
    times.monotonic += 59.9
    assert controls.state()["pin"]["left_s"] == pytest.approx(0.1)
    times.unix -= 2e6
    times.monotonic += 0.1
    assert controls.orders()["pin"] is None
    assert (controls.log.recent[-1].who, controls.log.recent[-1].action) == ("end of its time", "unpin")


def test_a_second_pin_replaces_the_first(controls, times):
    controls.pins.set("ops", PIN, 60, "")
    controls.pins.set("ops", PinValues(), 10, "")
    assert controls.state()["pin"] == {"reason": "pinned by ops", "until": times.unix + 10, "left_s": 10}
    times.monotonic += 10
    assert controls.pins.current is None


def test_a_refused_pin_leaves_the_one_before_it(controls):
    controls.pins.set("ops", PIN, 60, "")
    with pytest.raises(InvalidRequest):
        controls.pins.set("ops", PinValues(replicas={HEAVY: 99}), 60, "")
    assert controls.orders()["pin"]["values"] == {"thresholds": {LIGHT: 0.1}}
    assert controls.log.counts == {"pin": 1}


async def test_a_policy_is_switched_when_the_controller_can_make_it(controls):
    with pytest.raises(InvalidRequest):
        await controls.switch_policy("ops", "argus")
    assert controls.policy == "weir"
    await controls.switch_policy("ops", "all-heavy")
    assert controls.orders()["policy"] == "all-heavy"


async def test_every_action_is_recorded_with_its_key_time_and_end(controls, times, caplog):
    controls.pins.set("ops", PIN, 60, "a look")
    times.unix += 5
    await controls.switch_policy("root", "all-heavy")
    await controls.purge("root", "acme")
    controls.pins.end("ops")
    assert [(it.at - 1e9, it.who, it.action, it.what, it.until) for it in controls.log.recent] == [
        (0, "ops", "pin", "thresholds light=0.1 (a look)", 1e9 + 60),
        (5, "root", "policy", "all-heavy instead of weir", None),
        (5, "root", "purge", "tenant acme", None),
        (5, "ops", "unpin", "the policy plans again", None),
    ]
    assert controls.log.counts == {"pin": 1, "policy": 1, "purge": 1, "unpin": 1}
    assert "admin action=pin who=ops what='thresholds light=0.1 (a look)' until=1000000060" in caplog.messages
    assert [it["action"] for it in controls.state()["actions"]] == ["unpin", "purge", "policy", "pin"]


async def test_what_changes_nothing_is_no_action(controls):
    controls.pins.end("ops")
    await controls.switch_policy("ops", "all-heavy")
    await controls.switch_policy("ops", "all-heavy")
    assert [it.action for it in controls.log.recent] == ["policy"]


def test_the_record_is_bounded(controls):
    for _ in range(MOST_ACTIONS + 5):
        controls.pins.set("ops", PIN, 60, "")
    assert len(controls.log.recent) == MOST_ACTIONS
    assert controls.log.counts["pin"] == MOST_ACTIONS + 5


async def test_a_static_service_without_a_cache_says_what_is_missing(made):
    static = made(ControlTargets("static"))
    with pytest.raises(Conflict, match=r"controller\.policy"):
        static.pins.set("ops", PIN, 60, "")
    with pytest.raises(Conflict, match=r"controller\.policy"):
        await static.switch_policy("ops", "weir")
    with pytest.raises(Conflict, match=r"cache\.mode"):
        await static.purge("ops", None)
    assert not static.log.recent

"""Tests of the live controller over a fake pool: the plans it publishes, and the failures that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from controller.counters import Counters
from controller.live_ranks import ABSENCE_S
from controller.loop import APPLY_S, START_S, Controller, ServiceLink, spread
from controller.plan_notes import MOST_NOTES
from controller.policies.weir import Weir
from controller.registry import make_policy
from controller.setting import Setting
from load_balancer.runner.observation_counters import ObservationCounters
from solvers.problem import GpuType
from testing.collector import recorded
from weir.cascade import Admitted, CascadeSettings, ImageTask, Judged, Progress
from weir.clocks import Clocks
from weir.core import DeferralCurve, LatencyProfile
from weir.errors import NotReady, PlanError
from weir.pin import Pin, PinValues, pinned
from weir.plan import HEAVY, LIGHT, PINNED, Plan
from weir.telemetry import Metrics, PrometheusMetrics

SIZE = 4
SETTING = Setting(
    (GpuType.pair("gpu", SIZE, LatencyProfile((1, 4), (0.1, 0.25)), LatencyProfile((1, 4), (0.4, 1.0))),),
    slo_s=5.0,
    deferral=DeferralCurve((0.0, 1.0), (0.0, 1.0)),
)


def setting_of(size: int) -> Setting:
    """The setting with another number of replicas."""
    return replace(SETTING, gpus=(replace(SETTING.gpus[0], count=size),))


CONFIGURED = Plan.split(1, 2, 2, light_batch=4, heavy_batch=4, threshold=0.5)


#: Requests per second that one light replica carries, and that need three of the four.
FEW, MANY = 10, 35


class Cluster:
    """A fake pool with its load balancer, advanced one second at a time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.plan = CONFIGURED
        self.ranks = list(range(SIZE))
        self.tally = ObservationCounters(expiry_s=2 * SETTING.slo_s)
        self.published: list[Plan] = []
        self.dead_dashboard = self.deaf = self.silent = False
        self.policy, self.size = "", 0
        self.pin: Pin | None = None

    def look(self, before: Counters | None = None) -> Counters:
        if self.silent:
            raise TimeoutError
        fields = {"plan": self.plan.to_dict(), "ranks": self.ranks, "queued": {"light": 0, "heavy": 0}}
        fields |= {"policy": self.policy, "size": self.size, "pin": self.pin.to_dict() if self.pin else None}
        known = (before.judged, before.batches_run) if before else (0, 0)
        return Counters.from_dict({**fields, **self.tally.since(*known, self.now)})

    def publish(self, plan: Plan, running: Plan) -> None:
        assert running == self.plan
        if self.dead_dashboard:
            raise NotReady("the dashboard does not answer")
        self.published.append(plan)
        if not self.deaf:
            self.plan = plan

    def judge(self, confidence: float, deferred: bool | None = None) -> None:
        """Adds the verdict on one light image; without an argument the plan decides."""
        progress = Progress(ImageTask(self.plan, self.now, SETTING.slo_s), CascadeSettings({LIGHT: 2, HEAVY: 50}))
        verdict = Judged(LIGHT, confidence, self.plan.defers(LIGHT, confidence) if deferred is None else deferred)
        self.tally.follow("", progress, Admitted(), [verdict], self.now)

    def second(self, controller: Controller, images: int) -> None:
        self.now += 1
        self.tally.arrived(images)
        for i in range(images):
            confidence = (i * 0.618034 + self.now * 0.37) % 1
            self.judge(confidence)
        controller.step()

    def seconds(self, controller: Controller, count: int, images: int) -> None:
        for _ in range(count):
            self.second(controller, images)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def controller(
    cluster: Cluster,
    policy: str = "weir",
    metrics: Metrics | None = None,
    lead: Callable[[], bool] | None = None,
) -> Controller:
    return Controller(
        lambda name, size: make_policy(name or policy, setting_of(size)),
        SIZE,
        ServiceLink(cluster.look, cluster.publish, lead or (lambda: True)),
        metrics=metrics,
        clocks=Clocks(monotonic=lambda: cluster.now),
    )


def test_replicas_become_light_with_more_demand_and_heavy_again_with_less(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    assert cluster.plan.count(LIGHT) == 1
    cluster.seconds(it, 10, MANY)
    assert cluster.plan.count(LIGHT) == 3
    cluster.seconds(it, 40, FEW)
    assert cluster.plan.count(LIGHT) == 1


def test_a_burst_triggers_a_plan_within_two_seconds(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.seconds(it, 2, MANY)
    assert cluster.plan.count(LIGHT) > 1


def test_a_steady_load_never_changes_a_role(cluster):
    it = controller(cluster)
    cluster.seconds(it, 10, 8)
    roles = [cluster.plan.assignments]
    for _ in range(120):
        cluster.second(it, 8)
        if cluster.plan.assignments != roles[-1]:
            roles.append(cluster.plan.assignments)
    assert len({tuple(a.role for a in assignments) for assignments in roles}) == 1


def test_versions_only_grow_and_every_plan_is_for_the_whole_pool(cluster):
    it = controller(cluster)
    for images in (0, 3, 30, 300, 0):
        cluster.seconds(it, 10, images)
    versions = [plan.version for plan in cluster.published]
    assert versions == sorted(set(versions))
    assert {len(plan.assignments) for plan in cluster.published} == {SIZE}


def test_a_plan_equal_to_the_one_in_force_is_not_published(cluster):
    it = controller(cluster, "all-light")
    cluster.seconds(it, 30, 2)
    assert len(cluster.published) == 1
    assert cluster.plan.count(HEAVY) == 0


def test_the_plan_stays_while_the_dashboard_is_down_and_changes_once_it_is_back(cluster, caplog):
    it = controller(cluster)
    cluster.seconds(it, 10, FEW)
    running, cluster.dead_dashboard = cluster.plan, True
    cluster.seconds(it, 20, MANY)
    assert cluster.plan is running
    assert sum("the dashboard does not answer" in record.message for record in caplog.records) == 1
    cluster.dead_dashboard = False
    cluster.seconds(it, 3, MANY)
    assert cluster.plan.count(LIGHT) == 3
    assert cluster.plan.version > running.version


def test_every_published_plan_is_a_span_and_a_failed_publication_says_so(cluster):
    it = controller(cluster)
    with recorded("controller") as collector:
        cluster.seconds(it, 20, FEW)
        cluster.dead_dashboard = True
        cluster.seconds(it, 3, MANY)
    plans = [span for span in collector.spans if span.name == "plan"]
    published = [span for span in plans if not span.failed]
    assert [span.attributes["weir.plan_version"] for span in published] == [plan.version for plan in cluster.published]
    assert [span.attributes["weir.reason"] for span in published] == [plan.reason for plan in cluster.published]
    failed = plans[len(published) :]
    assert {span.attributes["error.type"] for span in failed} == {NotReady.code}
    assert all(span.attributes["weir.solve_s"] > 0 for span in plans)
    publications = [span for span in collector.spans if span.name == "publish"]
    assert [span.parent_id for span in publications] == [span.span_id for span in plans]


@pytest.mark.parametrize("failure", [RuntimeError("the solver died"), PlanError("threshold is nan")])
def test_the_plan_stays_when_a_policy_raises_and_a_new_policy_continues(cluster, monkeypatch, failure, caplog):
    it = controller(cluster)
    cluster.seconds(it, 10, FEW)
    running = cluster.plan

    def broken(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Weir, "observe", broken)
        cluster.seconds(it, 20, MANY)
    assert cluster.plan is running
    assert str(failure) in caplog.text
    cluster.seconds(it, 4, MANY)
    assert cluster.plan.count(LIGHT) == 3


@pytest.mark.parametrize("invalid", [7, "plan", Plan.split(9, 1, 1, light_batch=1, heavy_batch=1, threshold=0)])
def test_the_plan_stays_when_a_policy_returns_an_invalid_plan(cluster, monkeypatch, invalid):
    it = controller(cluster)
    cluster.seconds(it, 10, FEW)
    running = cluster.plan
    monkeypatch.setattr(Weir, "observe", lambda *_: invalid)
    cluster.seconds(it, 5, MANY)
    assert cluster.plan is running


def test_the_demand_stays_correct_when_the_load_balancer_is_silent_for_a_while(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, 2)
    before, cluster.silent = cluster.plan, True
    cluster.seconds(it, 8, 2)
    cluster.silent = False
    cluster.seconds(it, 5, 2)
    assert [a.role for a in cluster.plan.assignments] == [a.role for a in before.assignments]


def test_a_restarted_controller_continues_from_the_running_plan(cluster):
    cluster.seconds(controller(cluster), 20, MANY)
    running, count = cluster.plan, len(cluster.published)
    again = controller(cluster)
    cluster.second(again, MANY)
    assert cluster.plan is running
    cluster.seconds(again, 20, MANY)
    assert all(plan.version > running.version for plan in cluster.published[count:])
    for plan in cluster.published[count:]:
        assert [a.role for a in plan.assignments] == [a.role for a in running.assignments]


def test_only_the_leading_of_two_controllers_publishes_and_the_other_takes_over(cluster):
    leads = [True, False]
    first, second = (controller(cluster, lead=lambda n=n: leads[n]) for n in (0, 1))
    for _ in range(20):
        cluster.second(first, FEW)
        second.step()
    running, count = cluster.plan, len(cluster.published)
    assert count > 0
    leads.reverse()
    for _ in range(20):
        cluster.second(second, MANY)
        first.step()
    assert cluster.plan.count(LIGHT) == 3
    versions = [plan.version for plan in cluster.published]
    assert versions == sorted(set(versions))
    assert cluster.published[count].version == running.version + 1, "the second one has counted on from the first"


def test_a_starting_pool_keeps_the_plan_of_the_configuration(cluster):
    it = controller(cluster)
    cluster.ranks = [0, 1]
    cluster.seconds(it, 20, FEW)
    assert cluster.plan is CONFIGURED
    cluster.ranks = list(range(SIZE))
    cluster.seconds(it, 5, FEW)
    assert cluster.plan.version > CONFIGURED.version


def test_an_incomplete_pool_is_planned_for_after_the_start_timeout(cluster):
    it = controller(cluster)
    cluster.ranks = [0, 1]
    cluster.seconds(it, round(START_S) + 5, FEW)
    assert cluster.plan.version > CONFIGURED.version
    assert {cluster.plan.assignment(rank).role for rank in cluster.ranks} == {LIGHT, HEAVY}


def test_a_plan_that_does_not_come_into_force_is_published_again(cluster):
    it = controller(cluster, "all-light")
    cluster.deaf = True
    cluster.seconds(it, round(APPLY_S) + 3, 1)
    assert [plan.version for plan in cluster.published] == [2, 3]
    cluster.deaf = False
    cluster.seconds(it, round(APPLY_S) + 3, 1)
    assert cluster.plan.count(HEAVY) == 0


def test_the_others_share_the_work_of_a_dead_replica(cluster):
    it = controller(cluster)
    cluster.seconds(it, 10, FEW)
    light = next(rank for rank, a in enumerate(cluster.plan.assignments) if a.role == LIGHT)
    cluster.ranks.remove(light)
    cluster.seconds(it, int(ABSENCE_S) + 1, FEW)
    assert len(cluster.plan.assignments) == SIZE
    assert any(cluster.plan.assignment(rank).role == LIGHT for rank in cluster.ranks)


def test_without_any_replica_nothing_is_planned(cluster):
    it = controller(cluster)
    cluster.ranks.clear()
    cluster.seconds(it, 10, 5)
    assert cluster.published == []


def test_the_counters_of_a_restarted_load_balancer_begin_at_its_start(cluster):
    cluster.tally.arrived(50)
    before = cluster.look()
    cluster.tally = ObservationCounters(expiry_s=10)
    cluster.tally.arrived(3)
    cluster.judge(0.2, True)
    seen = cluster.look(before).since(before, 1.0)
    assert (seen.arrivals, seen.deferred, seen.confidences) == (3, 1, (0.2,))


def test_the_deferred_count_is_scaled_when_confidences_are_left_out(cluster):
    for i in range(3000):
        cluster.judge(0.5, i % 2 == 0)
    seen = cluster.look().since(None, 1.0)
    assert (len(seen.confidences), seen.deferred) == (1000, 500)


@given(st.sets(st.integers(0, 9), min_size=1), st.integers(0, 10), st.integers(10, 12))
def test_the_roles_of_a_plan_go_to_the_live_ranks(ranks, light, size):
    light = min(light, len(ranks))
    plan = Plan.split(1, light, len(ranks) - light, light_batch=2, heavy_batch=3, threshold=0.5)
    whole = spread(plan, ranks, size)
    assert len(whole.assignments) == size
    assert sum(whole.assignment(rank).role == LIGHT for rank in ranks) == light


def test_the_controller_records_its_decisions_and_their_cost(cluster):
    registry = CollectorRegistry()
    it = controller(cluster, metrics=PrometheusMetrics(registry))
    cluster.seconds(it, 20, FEW)
    metric = registry.get_sample_value
    assert metric("weir_forecast_rps") == pytest.approx(1.05 * FEW)
    assert metric("weir_replicas_alive") == SIZE
    assert 0 < metric("weir_planned_deferral") <= 1
    assert metric("weir_planned_shed_rps") == 0
    assert metric("weir_plans_published_total") == len(cluster.published)
    assert metric("weir_solves_total", {"status": "optimal"}) >= 4
    assert 0 < metric("weir_solve_seconds_count") <= metric("weir_solves_total", {"status": "optimal"})
    flips = metric("weir_role_flips_total")
    cluster.seconds(it, 10, MANY)
    assert metric("weir_role_flips_total") == flips + 2
    cluster.silent = True
    cluster.second(it, FEW)
    assert metric("weir_controller_failures_total") == 1


def test_slower_batches_change_the_plan(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, 15)
    before = cluster.plan.threshold
    for _ in range(40):
        for size in (1, 2, 4):
            cluster.tally.batch(HEAVY, size, 1.5 * SETTING.gpus[0].heavy.at(size))
        cluster.second(it, 15)
    assert cluster.plan.threshold < before - 0.1


def test_an_outdated_policy_is_replaced_and_the_plan_in_force_stays(cluster):
    made: list[Weir] = []

    def make(name: str, size: int) -> Weir:
        made.append(Weir(SETTING))
        return made[-1]

    answers = iter([False] * 20 + [True] + [False] * 30)
    it = Controller(
        make,
        SIZE,
        ServiceLink(cluster.look, cluster.publish),
        outdated=lambda: next(answers),
        clocks=Clocks(monotonic=lambda: cluster.now),
    )
    cluster.seconds(it, 20, FEW)
    plan = cluster.plan
    cluster.second(it, FEW)
    assert len(made) == 2
    assert cluster.plan == plan
    cluster.seconds(it, 20, MANY)
    assert cluster.plan.version > plan.version


def test_every_published_plan_leaves_a_note_with_its_reason(cluster, caplog):
    caplog.set_level("INFO")
    it = controller(cluster)
    cluster.seconds(it, 10, FEW)
    cluster.seconds(it, 6, MANY)
    assert [note.version for note in it.notes] == [plan.version for plan in cluster.published]
    note = next(note for note in reversed(it.notes) if "rose" in note.reason)
    assert note.roles == dict(next(plan for plan in cluster.published if plan.version == note.version).counts)
    assert note.demand_rps > FEW
    assert "% of the light images are deferred" in note.reason
    assert str(note) in caplog.messages
    assert note.to_dict()["thresholds"] == note.thresholds
    assert cluster.plan.reason, "the plan itself carries it, for reports of the load balancer"


def test_notes_are_kept_for_the_last_plans_only(cluster):
    it = controller(cluster)
    for images in (FEW, MANY) * 40:
        cluster.seconds(it, 6, images)
    assert len(it.notes) == MOST_NOTES


# ------------------------------------------------------------------------------------------------ what operators change


def pin(cluster: Cluster, **values: dict[str, float]) -> Pin:
    return pinned(PinValues(**values), cluster.plan, CONFIGURED, (LIGHT, HEAVY), cluster.ranks, "pinned by ops")


def test_a_pinned_threshold_holds_until_the_pin_ends_and_roles_follow_the_demand(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    assert (cluster.plan.count(LIGHT), cluster.plan.origin) == (1, "")
    cluster.pin = pin(cluster, thresholds={LIGHT: 0.111})
    cluster.second(it, FEW)
    assert (cluster.plan.thresholds, cluster.plan.origin) == ((0.111,), PINNED)
    assert cluster.plan.reason == "pinned by ops"
    cluster.seconds(it, 10, MANY)
    assert (cluster.plan.count(LIGHT), cluster.plan.thresholds) == (3, (0.111,))
    cluster.pin = None
    cluster.second(it, MANY)
    assert cluster.plan.thresholds != (0.111,)
    assert (cluster.plan.count(LIGHT), cluster.plan.origin) == (3, "")


def test_a_pinned_plan_holds_through_every_demand_and_ends_at_once(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    before = cluster.plan
    cluster.pin = pin(cluster)
    for images in (FEW, MANY, 0):
        cluster.seconds(it, 10, images)
        assert cluster.plan == replace(before, version=before.version + 1)
    cluster.seconds(it, 10, MANY)
    cluster.pin = None
    cluster.second(it, MANY)
    assert cluster.plan.count(LIGHT) == 3


def test_pinned_replicas_fit_the_replicas_that_are_left(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.pin = pin(cluster, replicas={LIGHT: 3, HEAVY: 1})
    cluster.seconds(it, 5, FEW)
    assert cluster.plan.counts == {LIGHT: 3, HEAVY: 1}
    cluster.ranks = [1, 2, 3]  # one is drained, or has died
    cluster.seconds(it, 5, FEW)
    assert [cluster.plan.assignment(rank).role for rank in cluster.ranks] == [LIGHT, LIGHT, HEAVY]
    assert len(cluster.plan.assignments) == SIZE


def test_a_pin_is_published_once(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.pin = pin(cluster, replicas={LIGHT: 2, HEAVY: 2}, thresholds={LIGHT: 0.5})
    count = len(cluster.published)
    cluster.seconds(it, 30, FEW)
    assert len(cluster.published) - count <= 1


def test_a_pin_that_cannot_be_published_is_tried_again(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.pin, cluster.dead_dashboard = pin(cluster, thresholds={LIGHT: 0.111}), True
    cluster.seconds(it, 3, FEW)
    cluster.dead_dashboard = False
    cluster.second(it, FEW)
    assert cluster.plan.thresholds == (0.111,)


def test_a_restarted_controller_keeps_the_pin(cluster):
    first = controller(cluster)
    cluster.seconds(first, 20, FEW)
    cluster.pin = pin(cluster, replicas={LIGHT: 0, HEAVY: 4})
    cluster.second(first, FEW)
    assert cluster.plan.counts == {HEAVY: 4}
    successor = controller(cluster)
    cluster.seconds(successor, 10, FEW)
    assert cluster.plan.counts == {HEAVY: 4}
    cluster.pin = None
    cluster.seconds(successor, 5, FEW)
    assert cluster.plan.count(LIGHT) == 1


@pytest.mark.parametrize("policy", ["weir", "all-light"])
def test_a_controller_that_starts_after_the_end_of_a_pin_plans_anew(cluster, policy):
    first = controller(cluster, policy)
    cluster.seconds(first, 5, FEW)
    cluster.pin = pin(cluster, replicas={LIGHT: 0, HEAVY: 4})
    cluster.second(first, FEW)
    assert cluster.plan.counts == {HEAVY: 4}
    cluster.pin = None
    cluster.seconds(controller(cluster, policy), 5, FEW)
    assert cluster.plan.count(LIGHT) > 0, "a policy that never changes its plan would keep the pinned one"


def test_another_policy_replaces_the_plan_and_the_first_one_comes_back(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.policy = "all-heavy"
    cluster.second(it, FEW)
    assert (cluster.plan.counts, cluster.plan.origin) == ({HEAVY: 4}, "all-heavy")
    assert cluster.plan.rules.heavy_entry == 1
    cluster.seconds(it, 10, MANY)
    assert cluster.plan.counts == {HEAVY: 4}
    cluster.policy = "weir"
    cluster.seconds(it, 10, MANY)
    assert (cluster.plan.count(LIGHT), cluster.plan.origin) == (3, "weir")


def test_a_switch_while_replicas_are_drained_plans_for_the_others(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.ranks = [0, 2, 3]
    cluster.seconds(it, 5, FEW)
    cluster.policy = "all-heavy"
    cluster.second(it, FEW)
    assert {cluster.plan.assignment(rank).role for rank in cluster.ranks} == {HEAVY}


def test_more_replicas_are_planned_for_as_they_come_up_and_fewer_at_once(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, MANY)
    assert cluster.plan.counts == {LIGHT: 3, HEAVY: 1}
    cluster.size = 6
    cluster.second(it, MANY)
    assert len(cluster.plan.assignments) == 6
    assert [cluster.plan.assignment(rank).role for rank in range(4)].count(HEAVY) == 1, "only four are up"
    cluster.ranks = list(range(6))
    cluster.seconds(it, 5, MANY)
    assert cluster.plan.counts == {LIGHT: 3, HEAVY: 3}
    cluster.size = 2
    cluster.second(it, FEW)
    assert cluster.plan.counts == {LIGHT: 1, HEAVY: 1}


def test_the_number_of_replicas_is_that_of_the_configuration_until_an_operator_gives_another(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    assert {len(plan.assignments) for plan in cluster.published} == {SIZE}


def test_a_policy_that_cannot_be_made_leaves_the_last_good_plan(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    before = cluster.plan
    cluster.policy = "argus"  # it needs levels, which this setting lacks
    cluster.seconds(it, 5, MANY)
    assert cluster.plan == before
    cluster.policy = "weir"
    cluster.seconds(it, 10, MANY)
    assert cluster.plan.count(LIGHT) == 3


def test_a_switch_under_a_pin_takes_effect_when_the_pin_ends(cluster):
    it = controller(cluster)
    cluster.seconds(it, 20, FEW)
    cluster.pin = pin(cluster)
    pinned_plan = cluster.plan
    cluster.policy = "all-heavy"
    cluster.seconds(it, 5, FEW)
    assert cluster.plan == replace(pinned_plan, version=pinned_plan.version + 1)
    cluster.pin = None
    cluster.second(it, FEW)
    assert cluster.plan.counts == {HEAVY: 4}

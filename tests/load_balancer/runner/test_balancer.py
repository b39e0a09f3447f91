"""The balancer over a fake pool: requests whose images are late or fail, or whose replica dies."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from load_balancer.dispatch.lateness import LEAST_IMAGES
from load_balancer.http.api_keys import Caller
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from tests.load_balancer.conftest import FakePool
from weir.config import FamilyConfig
from weir.core import NO_LOOKUP, Edit, ImageSize, margin_s
from weir.errors import DeadlineExceeded, GenerationFailed, NotReady, Overloaded
from weir.plan import HEAVY, LIGHT, Assignment, Plan, ReplicaChoice, Rules
from weir.profiles import Profile

SQUARE = ImageSize(64, 64)
ORDER = GenerationRequest("a red circle", SQUARE)


async def test_a_confident_image_comes_from_a_light_replica(running, pool):
    async with running() as balancer:
        (image,) = await balancer.generate(ORDER)
    assert (image.path, image.model, image.confidence) == ("light", "toy-light", 0.9)
    assert [(replica, role) for replica, role, _ in pool.calls] == [("replica-0", LIGHT)]


async def test_a_doubtful_image_is_generated_again_by_a_heavy_replica_with_the_same_seed(running, pool):
    pool.confidence = 0.1
    async with running() as balancer:
        (image,) = await balancer.generate(ORDER)
    assert (image.path, image.model, image.confidence) == ("heavy", "toy-heavy", 0.1)
    assert image.compute_s == pytest.approx(0.02)
    (_, first, light), (replica, second, heavy) = pool.calls
    assert (first, second) == (LIGHT, HEAVY)
    # The balancer does not wait for the heavy image until the deadline itself, so the worker's deadline is earlier.
    assert heavy == {**light, "left_s": pytest.approx(light["left_s"] - margin_s(5.0))}
    assert replica in ("replica-1", "replica-2")


async def test_the_images_of_one_request_have_consecutive_seeds_and_own_ids(running, pool):
    async with running() as balancer:
        images = await balancer.generate(GenerationRequest("a", SQUARE, n=3, seed=2**64 - 2))
    assert [image.seed for image in images] == [2**64 - 2, 2**64 - 1, 0]
    assert len({image.result.id for image in images}) == 3


async def test_without_a_seed_every_request_gets_its_own(running):
    async with running() as balancer:
        seeds = {(await balancer.generate(ORDER))[0].seed for _ in range(20)}
    assert len(seeds) == 20


async def test_steps_guidance_and_sampler_travel_to_the_worker(running, pool):
    async with running() as balancer:
        wanted = GenerationRequest("a", SQUARE, variant=HEAVY, steps=10, guidance=3.0, sampler="ddim")
        (image,) = await balancer.generate(wanted)
    assert image.result.steps == 10
    assert pool.calls[0][2]["overrides"] == {"steps": 10, "guidance": 3.0, "sampler": "ddim"}


async def test_a_worker_gets_the_tenant_of_an_image(running, pool):
    async with running() as balancer:
        await balancer.generate(replace(ORDER, caller=Caller("alice", "acme")))
    assert pool.calls[0][2]["tenant"] == "acme"


async def test_a_heavy_image_that_fails_leaves_the_light_one(running, pool):
    pool.confidence = 0.1
    pool.fail = lambda _, role: ("generation_failed", "broken") if role == HEAVY else None
    async with running() as balancer:
        (image,) = await balancer.generate(ORDER)
    assert (image.path, image.model) == ("light-deadline", "toy-light")


async def test_a_heavy_image_that_is_late_leaves_the_light_one_and_is_cancelled(running, pool):
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 60
    async with running(slo_s=0.4) as balancer:
        (image,) = await balancer.generate(ORDER)
        assert image.path == "light-deadline"
        assert image.latency_s < 0.4
        assert pool.cancelled == 1
        assert not any(balancer.dispatcher.replicas.outstanding.values())


async def test_the_light_image_is_answered_with_a_margin_before_the_deadline(running, pool, monkeypatch):
    monkeypatch.setattr("weir.cascade.margin_s", lambda slo_s: 0.5 * slo_s)
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 60
    async with running(slo_s=1.0) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert 0.5 <= image.latency_s < 0.8


async def test_a_heavy_image_predicted_within_the_margin_is_not_begun(running, pool):
    pool.confidence = 0.1
    async with running(slo_s=0.1 + 0.9 * margin_s(0.1)) as balancer:  # heavy takes 0.1 s
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light-deadline"
    assert len(pool.calls) == 1


async def test_late_heavy_images_make_the_next_predictions_later(running, pool):
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 60  # predicted: 0.1 s
    async with running(slo_s=0.3) as balancer:
        while sum(role == HEAVY for _, role, _ in pool.calls) < LEAST_IMAGES:
            assert (await balancer.generate(ORDER))[0].path == "light-deadline"
        begun = len(pool.calls)
        pool.delay_s[LIGHT] = 0.01  # nearer to the deadline than those before
        await balancer.generate(ORDER)
    assert len(pool.calls) == begun + 1  # its light image alone


async def test_a_heavy_image_that_could_not_be_ready_is_not_begun(running, pool):
    pool.confidence = 0.1
    async with running(slo_s=0.09) as balancer:  # heavy takes 0.1 s
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light-deadline"
    assert len(pool.calls) == 1


async def test_a_light_image_that_fails_twice_is_a_typed_error(running, pool):
    pool.fail = lambda *_: ("generation_failed", "the image is black")
    async with running() as balancer:
        with pytest.raises(GenerationFailed, match="the image is black"):
            await balancer.generate(ORDER)
        assert balancer.admission.in_flight == 0
    first, second = (replica for replica, _, _ in pool.calls)
    assert first != second


async def test_an_image_that_fails_on_a_replica_is_generated_by_another(running, pool):
    pool.fail = lambda replica, _: ("generation_failed", "broken") if replica == "replica-0" else None
    async with running() as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light"
    (broken, _, first), (_, _, second) = pool.calls
    assert broken == "replica-0"
    assert first == second


@pytest.mark.parametrize("threshold", [0.0, 0.5])
async def test_a_light_image_that_is_not_finite_is_generated_by_the_heavy_variant(running, pool, threshold):
    pool.fail = lambda _, variant: ("not_finite", "the image is black") if variant == LIGHT else None
    async with running(Plan.split(1, 1, 2, light_batch=4, heavy_batch=4, threshold=threshold)) as balancer:
        (image,) = await balancer.generate(ORDER)
        counts = balancer.counters()
    assert image.path == "heavy"
    assert [variant for _, variant, _ in pool.calls] == [LIGHT, HEAVY]
    assert (counts["deferred"], counts["confidences"]) == (1, [0.0])


async def test_an_image_that_fails_on_the_only_replica_is_an_error_at_once(running, pool):
    pool.alive = {"replica-0": 0}
    pool.fail = lambda *_: ("not_finite", "the image is black")
    async with running(Plan.split(1, 1, 0, light_batch=4, heavy_batch=4, threshold=0.5), slo_s=60) as balancer:
        with pytest.raises(GenerationFailed, match="the image is black"):
            await balancer.generate(ORDER)
    assert len(pool.calls) == 1


async def test_a_deadline_error_of_a_worker_is_a_504(running, pool):
    pool.fail = lambda *_: ("deadline_exceeded", "late")
    async with running() as balancer:
        with pytest.raises(DeadlineExceeded):
            await balancer.generate(ORDER)


async def test_a_request_whose_replica_died_is_sent_once_more_elsewhere(running, pool):
    async with running() as balancer:
        del pool.alive["replica-0"]
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light"
    (dead, _, first), (other, _, second) = pool.calls
    assert dead == "replica-0" != other
    assert first == second


async def test_a_request_whose_node_died_is_sent_once_more_to_another_node(running, pool):
    pool.alive = {f"replica-{rank}": rank for rank in range(4)}
    pool.nodes = {"replica-0": "one", "replica-1": "one", "replica-2": "one", "replica-3": "two"}
    async with running(Plan.split(1, 4, 0, light_batch=4, heavy_batch=4, threshold=0.5)) as balancer:
        for replica in ("replica-0", "replica-1", "replica-2"):
            del pool.alive[replica]
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light"
    assert [replica for replica, _, _ in pool.calls] == ["replica-0", "replica-3"]


async def test_two_deaths_end_in_a_typed_error(running, pool):
    async with running() as balancer:
        pool.alive.clear()
        with pytest.raises(GenerationFailed, match="2 replicas died"):
            await balancer.generate(ORDER)


async def test_a_queued_request_is_sent_again_when_its_replica_gives_up_the_role(running, pool):
    answers = iter([("role_changed", "now heavy"), None])
    pool.fail = lambda *_: next(answers)
    async with running() as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light"
    assert len(pool.calls) == 2


async def test_a_plan_without_light_replicas_starts_heavy(running, pool, plan):
    only_heavy = Plan.split(1, 0, 3, light_batch=1, heavy_batch=1, threshold=0.5)
    async with running(only_heavy) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert (image.path, image.confidence) == ("heavy", None)
    assert len(pool.calls) == 1


async def test_a_request_keeps_the_plan_it_started_with(running, pool, plan):
    pool.delay_s[LIGHT] = 0.05
    pool.confidence = 0.4
    newer = Plan.split(2, 1, 2, light_batch=4, heavy_batch=4, threshold=0.1)
    async with running() as balancer:
        old = asyncio.create_task(balancer.generate(ORDER))
        await asyncio.sleep(0.01)
        balancer.registry.apply(newer.to_dict())
        (before,), (after,) = await old, await balancer.generate(ORDER)
    assert (before.plan_version, before.path) == (1, "heavy")
    assert (after.plan_version, after.path) == (2, "light")


GOOD = Plan.split(2, 2, 1, light_batch=4, heavy_batch=4, threshold=0.3).to_dict()


@pytest.mark.parametrize(
    "fields",
    [
        None,
        7,
        "plan",
        [],
        {},
        {"version": 9},
        GOOD | {"version": 10**30},
        GOOD | {"version": True},
        GOOD | {"version": 2.5},
        GOOD | {"version": 2**53},
        {"version": 0, "assignments": [["light", 1]], "chain": ["light", "heavy"], "thresholds": [0.5]},
    ],
)
async def test_a_wrong_or_older_plan_changes_nothing(running, plan, fields):
    async with running() as balancer:
        balancer.registry.apply(fields)
        assert balancer.registry.plan is plan
        balancer.registry.apply(GOOD)
        assert balancer.registry.plan.version == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """Any JSON value, or a valid plan with one value replaced by any JSON value."""
    if draw(st.booleans()):
        return draw(JSON)
    fields, anything = copy.deepcopy(GOOD), draw(JSON)
    where = draw(st.sampled_from([*fields, "rules.", "assignment"]))
    if where == "rules.":
        fields["rules"][draw(st.sampled_from([*fields["rules"], "unknown"]))] = anything
    elif where == "assignment":
        fields["assignments"][0] = anything
    else:
        fields[where] = anything
    return fields


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged())
async def test_no_plan_raises_and_images_are_still_generated(plan, family, profile, fields):
    pool = FakePool(plan)
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=16), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    balancer.registry.apply(fields)
    (image,) = await balancer.generate(ORDER)
    assert image.path in ("light", "heavy")
    assert 0 <= balancer.registry.plan.threshold <= 1


async def test_a_larger_image_is_admitted_and_counted_by_its_pixels(running, pool):
    """The profile's 0.1 s of a heavy image are those of 64 × 64 pixels."""
    async with running(slo_s=3.0) as balancer:
        for side in (64, 128):
            await balancer.generate(GenerationRequest("a", ImageSize(side, side), variant=HEAVY))
        with pytest.raises(Overloaded, match=r"ready .* after its deadline"):
            await balancer.generate(GenerationRequest("a", ImageSize(512, 512), variant=HEAVY))
        assert balancer.counters()["arrivals"] == 1 + 4 + 64
        assert balancer.live()["arrivals"] == 3


async def test_cancelling_a_request_cancels_its_work(running, pool):
    pool.delay_s[LIGHT] = 60
    async with running() as balancer:
        order = asyncio.create_task(balancer.generate(GenerationRequest("a", SQUARE, n=3)))
        await asyncio.sleep(0.02)
        order.cancel()
        with pytest.raises(asyncio.CancelledError):
            await order
        assert pool.cancelled == 3
        assert balancer.admission.in_flight == 0
        assert not any(balancer.dispatcher.replicas.outstanding.values())


async def test_one_image_that_fails_cancels_its_siblings(running, pool):
    failures = iter([None])
    pool.fail = lambda *_: next(failures, ("generation_failed", "broken"))
    async with running() as balancer:
        with pytest.raises(GenerationFailed, match="broken"):
            await balancer.generate(GenerationRequest("a", SQUARE, n=3))
        assert balancer.admission.in_flight == 0


async def test_more_than_the_deadline_allows_is_refused_before_any_work(running, pool):
    pool.delay_s[HEAVY] = 1
    order = GenerationRequest("a", SQUARE, variant=HEAVY)
    async with running(slo_s=0.3, queued=1000) as balancer:
        tasks = [asyncio.create_task(balancer.generate(order)) for _ in range(40)]
        await asyncio.sleep(0.05)
        refused = [t.exception() for t in tasks if t.done() and t.exception()]
        assert refused
        assert all(isinstance(error, Overloaded) and error.retry_after_s for error in refused)
        assert len(pool.calls) == 40 - len(refused)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_without_replicas_the_readiness_report_has_what_is_missing(pool, plan, family):
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=1, queued=1))
    with pytest.raises(NotReady):
        await balancer.generate(ORDER)
    state = balancer.readiness()
    assert not state["ready"]
    assert state["pending"] == ["light: 0 of 1 replicas ready", "heavy: 0 of 2 replicas ready"]


async def test_a_pool_that_does_not_answer_keeps_its_last_description(running, pool, monkeypatch):
    async with running() as balancer:

        async def silent() -> list:
            raise TimeoutError

        monkeypatch.setattr(pool, "describe", silent)
        balancer.registry.probe_now()
        await asyncio.sleep(0.01)
        assert balancer.readiness()["ready"]


async def test_the_counters_report_what_happened(running, pool, plan):
    async with running() as balancer:
        await balancer.generate(ORDER)
        pool.confidence = 0.2
        await balancer.generate(GenerationRequest("a", SQUARE, n=2))
        await balancer.generate(GenerationRequest("a", SQUARE, variant=LIGHT))  # forced: the cascade did not decide
        seen = balancer.counters(1, 3)
    assert seen == {
        "plan": plan.to_dict(),
        "policy": "",
        "size": 3,
        "pin": None,
        "ranks": [0, 1, 2],
        "queued": {"light": 0, "heavy": 0},
        "arrivals": 4,
        "judged": 3,
        "deferred": 2,
        "confidences": [0.2, 0.2],
        "verdicts": 3,
        "confidences_by_variant": {"light": [0.9, 0.2, 0.2]},
        "batches_run": 6,
        "batches": [("heavy", 1, 0.01), ("heavy", 1, 0.01), ("light", 1, 0.01)],
        "in_flight": 0,
        "deferred_in_flight": 0,
        "late_answers": 0,
        "late_deferred": 0,
        "looked_up": 0,
        "fetched": 0,
        "fetches": [],
        "found": {},
        "missed": {},
        "classes": {},
        "levels": [-1, -1],
        "reused": {},
    }


async def test_the_time_of_a_shorter_batch_is_scaled_to_a_whole_run(running, pool):
    async with running() as balancer:
        await balancer.generate(GenerationRequest("a", SQUARE, variant=HEAVY, steps=10))
        assert balancer.counters()["batches"] == [("heavy", 1, pytest.approx(0.05))]


async def test_the_plan_sets_the_steps_of_deferred_images_unless_the_request_does(running, pool, plan):
    pool.confidence = 0.1
    async with running(replace(plan, rules=Rules(heavy_steps=20))) as balancer:
        await balancer.generate(ORDER)
        await balancer.generate(replace(ORDER, steps=30))
        await balancer.generate(replace(ORDER, variant=HEAVY))
    generated = [request["overrides"]["steps"] for _, role, request in pool.calls if role == HEAVY]
    assert generated == [20, 30, None]


async def test_no_plan_makes_a_run_longer_than_the_variants_own(running, pool, plan):
    pool.confidence = 0.1
    async with running(replace(plan, rules=Rules(heavy_steps=10**6))) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.path == "heavy"
    assert pool.calls[1][2]["overrides"]["steps"] is None


async def test_refused_images_count_as_arrivals(pool, plan, family):
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=1, queued=1))
    with pytest.raises(NotReady):
        await balancer.generate(ORDER)
    assert balancer.counters()["arrivals"] == 1


# ---------------------------------------------------------------------------------------- rules of other policies


def ruled(light: int = 1, heavy: int = 2, **rules) -> Plan:
    """A plan with DiffServe's rules, apart from those given."""
    published = Rules(ReplicaChoice.RANDOM, drop_after_s=5.0, light_fallback=False, dispatch_again=False)
    return Plan.split(1, light, heavy, light_batch=4, heavy_batch=4, threshold=0.5, rules=replace(published, **rules))


async def test_random_choice_uses_every_replica_of_the_role(running, pool):
    async with running(ruled(heavy=2, heavy_entry=1.0)) as balancer:
        for _ in range(30):
            await balancer.generate(ORDER)
    assert {replica for replica, _, _ in pool.calls} == {"replica-1", "replica-2"}


async def test_a_share_of_the_requests_begins_heavy(running, pool):
    async with running(ruled(heavy_entry=0.5)) as balancer:
        paths = [(await balancer.generate(ORDER))[0].path for _ in range(60)]
    assert 10 < paths.count("heavy") < 50


async def test_what_cannot_be_ready_in_time_is_dropped_while_it_waits(running, pool):
    pool.delay_s[LIGHT] = 60
    async with running(ruled(drop_after_s=0.2)) as balancer:
        begun = asyncio.create_task(balancer.generate(ORDER))
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded, match="dropped"):
            await balancer.generate(ORDER)
        await asyncio.sleep(0)
        assert (pool.cancelled, balancer.admission.in_flight) == (1, 1)
        assert balancer.counters()["in_flight"] == 2  # a dropped image counts until it expires
        begun.cancel()


async def test_a_light_image_replaces_one_that_entered_heavy_and_would_be_late(running, pool, plan):
    pool.delay_s[HEAVY] = 60
    one = Plan.split(1, 1, 2, light_batch=1, heavy_batch=1, threshold=0.5, rules=Rules(heavy_entry=1.0))
    async with running(one, slo_s=1.0) as balancer:
        begun = [asyncio.create_task(balancer.generate(ORDER)) for _ in range(2)]
        await asyncio.sleep(0.01)
        (image,) = await balancer.generate(ORDER)
        for each in begun:
            each.cancel()
    assert image.path in ("light", "light-deadline")
    assert image.latency_s < 1.0


async def test_a_running_image_is_not_dropped(running, pool):
    pool.delay_s[LIGHT] = 0.3
    async with running(ruled(drop_after_s=0.2)) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.path == "light"


async def test_without_fallback_a_late_heavy_image_is_awaited_and_a_failed_one_is_an_error(running, pool):
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 0.2
    async with running(ruled(), slo_s=0.1) as balancer:
        (image,) = await balancer.generate(ORDER)
        assert image.path == "heavy"
        assert image.latency_s > 0.1
        pool.fail = lambda _, role: ("generation_failed", "broken") if role == HEAVY else None
        with pytest.raises(GenerationFailed, match="broken"):
            await balancer.generate(ORDER)


async def test_a_replica_that_keeps_its_queue_generates_it_in_its_new_role(running, pool):
    answers = iter([("role_changed", "now heavy"), None])
    pool.fail = lambda *_: next(answers)
    async with running(ruled()) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.path == "heavy"
    assert [(replica, role) for replica, role, _ in pool.calls] == [
        ("replica-0", LIGHT),
        ("replica-0", HEAVY),
    ]


# ------------------------------------------------------------------------------------------------ longer ladders


@pytest.fixture
def ladder(family, profile) -> tuple[FamilyConfig, Profile]:
    """A family with a medium variant between light and heavy."""
    light, heavy = family.variants.values()
    medium = heavy.model_copy(update={"name": "toy-medium", "steps": 10})
    slow, quick = profile.variants[HEAVY], profile.variants[LIGHT]
    between = slow.model_copy(update={"name": "toy-medium", "steps": 10, "latency_s": quick.latency_s})
    return (
        family.model_copy(update={"variants": {LIGHT: light, "medium": medium, HEAVY: heavy}}),
        profile.model_copy(update={"variants": {LIGHT: quick, "medium": between, HEAVY: slow}}),
    )


ROLES = (Assignment(LIGHT, 4), Assignment("medium", 4), Assignment(HEAVY, 4))
THREE = Plan(1, ROLES, (0.5, 0.5), (LIGHT, "medium", HEAVY))


async def served(pool, plan: Plan, ladder: tuple[FamilyConfig, Profile]) -> Balancer:
    family, profile = ladder
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=16), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


@pytest.mark.parametrize(
    ("confidences", "path", "model"),
    [([0.9], "light", "toy-light"), ([0.1, 0.9], "medium", "toy-medium"), ([0.1, 0.2], "heavy", "toy-heavy")],
)
async def test_each_judge_of_a_longer_chain_decides_whether_an_image_goes_on(pool, ladder, confidences, path, model):
    generate, coming = pool.generate, iter(confidences)

    async def judged(replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        answer = await generate(replica, variant, request, role)
        return answer | ({} if variant == HEAVY else {"confidence": next(coming)})

    pool.generate = judged
    balancer = await served(pool, THREE, ladder)
    (image,) = await balancer.generate(ORDER)
    assert (image.path, image.model, image.confidence) == (path, model, confidences[-1])
    variants = [LIGHT, "medium", HEAVY][: len(pool.calls)]
    assert [(replica, variant) for replica, variant, _ in pool.calls] == [
        (f"replica-{rank}", variant) for rank, variant in enumerate(variants)
    ]


async def test_a_plan_may_use_any_chain_of_the_familys_variants(pool, ladder):
    pool.confidence = 0.1
    balancer = await served(pool, THREE, ladder)
    skips = Plan(2, (ROLES[1], ROLES[2], ROLES[2]), (0.5,), ("medium", HEAVY))
    balancer.registry.apply(skips.to_dict())
    (image,) = await balancer.generate(ORDER)
    (named,) = await balancer.generate(replace(ORDER, variant=LIGHT))
    assert [variant for _, variant, _ in pool.calls] == ["medium", HEAVY, LIGHT]
    assert (image.path, named.path) == ("heavy", "light")


async def test_a_plan_with_a_variant_that_the_family_does_not_hold_changes_nothing(running, plan, caplog):
    foreign = Plan(2, ROLES, (0.5, 0.5), (LIGHT, "medium", HEAVY))
    async with running() as balancer:
        balancer.registry.apply(foreign.to_dict())
        assert balancer.registry.plan is plan
    assert "medium" in caplog.text


def test_a_request_is_admitted_and_run_without_ray():
    imports = (
        "import sys, load_balancer.runner.balancer; print([it for it in sys.modules if it.split('.')[0] == 'ray'])"
    )
    found = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_larger_images_and_more_steps_have_the_price_of_their_work(running):
    async with running() as balancer:
        prices = {
            (width, steps, n): balancer.price(replace(ORDER, size=ImageSize(width, width), steps=steps, n=n))
            for width, steps, n in ((64, None, 1), (64, None, 4), (128, None, 1), (128, 100, 2), (32, 10, 3))
        }
    assert list(prices.values()) == [1, 4, 4, 16, 3]


async def test_an_edit_costs_the_steps_that_it_runs(running):
    edit = Edit(b"picture", None, 0.5)
    async with running() as balancer:
        prices = [balancer.price(replace(ORDER, edit=edit, steps=steps)) for steps in (None, 100, 200)]
        before = balancer.observations.demand
        [image] = await balancer.generate(replace(ORDER, edit=edit, cache="read-write"))
        demand = balancer.observations.demand - before
    assert prices == [1, 1, 2]  # a key pays for an image at least
    assert demand == pytest.approx(0.5)
    assert image.lookup is NO_LOOKUP


async def test_a_judge_that_answers_nan_defers_every_image(pool, running):
    pool.confidence = float("nan")
    async with running() as balancer:
        [image] = await balancer.generate(ORDER)
        assert balancer.counters()["confidences"] == [0.0]
    assert (image.path, image.confidence) == (HEAVY, None)

"""What happens to one image, event by event: the specification of the cascade."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.cascade import (
    AT_DEADLINE,
    FROM_CACHE,
    TRANSITIONS,
    Action,
    Admitted,
    Answer,
    Cancelled,
    CascadeSettings,
    Event,
    Fail,
    ImageReady,
    ImageTask,
    Judged,
    LookUp,
    LookupAnswered,
    Phase,
    Progress,
    Reason,
    Run,
    RunFailed,
    Show,
    TellCache,
    advance,
    first_run,
    first_variant,
    next_seed,
)
from weir.core import CacheLookup, ImageSize, Resume, margin_s
from weir.plan import HEAVY, LIGHT, Assignment, Level, LevelRouting, Plan, Rules

SLO_S = 10.0
LATEST = SLO_S - margin_s(SLO_S)
SETTINGS = CascadeSettings({LIGHT: 2, HEAVY: 50})
REDRAW = replace(SETTINGS, redraw_below=0.6, redraw_most=2)
STATE = Resume("state", 25)
HIT = CacheLookup("acme", 0.97, "entry", STATE, stored=((10, "early"), (25, "state")))
MISS = CacheLookup("acme", 0.31, capture=True)


def plan(light: int = 1, heavy: int = 1, threshold: float = 0.5, **rules: Any) -> Plan:
    return Plan.split(1, light, heavy, light_batch=1, heavy_batch=1, threshold=threshold, rules=Rules(**rules))


@dataclass
class FakeForecast:
    """Every run takes ``run_s``, those of a role in ``busy`` as long as is said there; None: no replica is there."""

    at: float = 0.0
    run_s: float | None = 1.0
    busy: dict[str, float | None] = field(default_factory=dict)

    def now(self) -> float:
        return self.at

    def finish_at(self, run: Run) -> float | None:
        takes = self.busy.get(run.role, self.run_s)
        return None if takes is None else self.at + takes


class Image:
    """One image under way: takes events, and gives the actions of each."""

    def __init__(self, of: Plan | None = None, config: CascadeSettings = SETTINGS, **task: Any):
        self.forecast = FakeForecast()
        self.progress = Progress(ImageTask(of or plan(), 0.0, SLO_S, **task), config)

    def take(self, event: Event) -> tuple[Action, ...]:
        self.progress, actions = advance(self.progress, event, self.forecast)
        return actions

    def begin(self, lookup: CacheLookup | None = None) -> Run:
        """The first run, after the cache answered if it was asked."""
        actions = self.take(Admitted())
        if actions == (LookUp(),):
            actions = self.take(LookupAnswered(lookup or CacheLookup()))
        (run,) = actions
        assert isinstance(run, Run)
        return run

    def ready(self, confidence: float | None = None) -> tuple[Action, ...]:
        """The run under way ends with an image, resumed where it was asked to."""
        run = self.progress.run
        assert run is not None
        return self.take(ImageReady(run.variant, confidence, run.resume.step if run.resume else 0))

    def fail(self, reason: Reason, replica: str = "a", new_role: str = "") -> tuple[Action, ...]:
        return self.take(RunFailed(reason, replica, new_role))


def only(actions: Sequence[Action], kind: type[Any]) -> Any:
    """The only action of the kind."""
    (found,) = (action for action in actions if isinstance(action, kind))
    return found


def test_every_run_of_an_image_has_its_size() -> None:
    image = Image(config=replace(SETTINGS, redraw_below=0.9), size=ImageSize(96, 64))
    light = image.begin()
    heavy = only(image.ready(0.0), Run)
    redraw = only(image.ready(0.1), Run)
    assert [light.size, heavy.size, redraw.size] == [(96, 64)] * 3
    assert [light.variant, heavy.variant, redraw.redraw] == [LIGHT, HEAVY, 1]


# ------------------------------------------------------------------------------------------- where a request enters


def test_a_request_enters_at_the_first_variant_that_has_replicas():
    assert Image().begin().variant == LIGHT
    assert Image(plan(light=0)).begin().variant == HEAVY
    three = Plan(1, (Assignment("medium", 1),), (0.5, 0.5), (LIGHT, "medium", HEAVY))
    assert Image(three).begin().variant == "medium"


@pytest.mark.parametrize("variant", [LIGHT, HEAVY])
@pytest.mark.parametrize("replicas", [(0, 1), (1, 0), (1, 1)])
def test_a_named_variant_is_run_whatever_the_plan_says(variant, replicas):
    assert Image(plan(*replicas), variant=variant).begin().variant == variant


def test_the_plan_sends_a_share_of_the_requests_to_the_last_variant_at_once():
    assert first_variant(Image(plan(heavy_entry=0.3), draw=0.29).progress.task) == HEAVY
    assert first_variant(Image(plan(heavy_entry=0.3), draw=0.3).progress.task) == LIGHT
    assert first_variant(Image(plan(heavy=0, heavy_entry=1.0), draw=0.0).progress.task) == LIGHT


def test_admission_prices_the_run_that_a_request_starts_with():
    for image in (
        Image(),
        Image(plan(light=0, heavy_steps=20)),
        Image(levels(), draw=0.5),
        Image(variant=HEAVY, steps=9),
    ):
        assert first_run(image.progress.task, SETTINGS)._replace(deadline=0) == image.begin()._replace(deadline=0)


def test_a_run_that_nothing_stands_in_for_is_awaited_beyond_the_deadline():
    run = Image().begin()
    assert (run.deadline, run.until, run.droppable) == (SLO_S, 3 * SLO_S, False)


def test_a_rule_may_drop_what_cannot_be_ready_in_time():
    run = Image(plan(drop_after_s=4.0)).begin()
    assert (run.deadline, run.droppable) == (4.0, True)


# ------------------------------------------------------------------------------------------------- light, then heavy


def test_a_deferred_image_stops_waiting_when_the_next_one_could_only_be_late():
    image = Image()
    image.begin()
    *_, run = image.ready(0.1)
    assert isinstance(run, Run)
    assert (run.droppable, run.deadline, run.until) == (True, LATEST, LATEST)
    assert image.fail(Reason.DROPPED) == (Answer(0, LIGHT + AT_DEADLINE),)


def test_an_image_that_its_judge_believes_is_the_answer():
    image = Image()
    image.begin()
    assert image.ready(0.5) == (Judged(LIGHT, 0.5, False), Answer(0, LIGHT))
    assert image.progress.phase is Phase.OVER


def test_a_doubtful_one_is_shown_and_deferred():
    image = Image()
    image.begin()
    verdict, show, run = image.ready(0.49)
    assert (verdict, show) == (Judged(LIGHT, 0.49, True), Show(0))
    assert isinstance(run, Run)
    assert (run.variant, run.role) == (HEAVY, HEAVY)
    assert (run.until, run.deadline) == (LATEST, LATEST), "nobody waits longer, for there is an answer"
    assert image.ready() == (Answer(1, HEAVY),)


@pytest.mark.parametrize("busy", [LATEST + 0.01, None])
def test_a_doubtful_one_is_the_answer_where_the_next_would_be_late(busy):
    image = Image()
    image.begin()
    image.forecast.busy = {HEAVY: busy}
    assert image.ready(0.1) == (Judged(LIGHT, 0.1, True), Answer(0, LIGHT + AT_DEADLINE))


def test_the_next_variant_may_use_all_the_time_up_to_the_margin():
    image = Image()
    image.begin()
    image.forecast.busy = {HEAVY: LATEST}
    assert only(image.ready(0.1), Run).variant == HEAVY


def test_without_fallback_a_deferred_image_is_deferred_however_late():
    image = Image(plan(light_fallback=False))
    image.begin()
    image.forecast.busy = {HEAVY: None}
    run = only(image.ready(0.1), Run)
    assert (run.until, run.deadline) == (3 * SLO_S, SLO_S)
    assert image.fail(Reason.LATE) == (Fail(),)


def test_where_the_next_variant_has_no_replica_nothing_is_deferred():
    image = Image(plan(heavy=0))
    image.begin()
    assert image.ready(0.0) == (Judged(LIGHT, 0.0, False), Answer(0, LIGHT))


def test_an_image_that_nobody_judged_counts_as_doubtful():
    image = Image()
    image.begin()
    assert only(image.ready(None), Judged).deferred
    image = Image(plan(threshold=0.0))
    image.begin()
    assert not only(image.ready(None), Judged).deferred


@given(st.floats(0, 1))
def test_threshold_0_defers_nothing_and_1_everything(confidence):
    for threshold, deferred in ((0.0, False), (1.0, True)):
        image = Image(plan(threshold=threshold))
        image.begin()
        assert only(image.ready(confidence), Judged).deferred == deferred


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_defers_less(confidence, one, other):
    low, high = sorted((one, other))
    assert plan(threshold=low).defers(LIGHT, confidence) <= plan(threshold=high).defers(LIGHT, confidence)


def test_an_image_of_a_named_variant_is_the_answer_and_no_verdict_of_the_cascade():
    for variant in (LIGHT, HEAVY):
        image = Image(variant=variant)
        image.begin()
        assert image.ready(0.0) == (Answer(0, variant),)


def test_the_plan_shortens_runs_of_the_last_variant_unless_the_request_says_otherwise():
    assert Image(plan(light=0, heavy_steps=20)).begin().steps == 20
    assert Image(plan(light=0, heavy_steps=20), steps=30).begin().steps == 30
    assert Image(plan(light=0, heavy_steps=20), variant=HEAVY).begin().steps is None
    assert Image(plan(light=0, heavy_steps=60)).begin().steps is None, "no plan makes a run longer"
    assert Image(plan(heavy_steps=20), steps=30).begin().steps is None, "of other variants nobody sets the steps"


# ------------------------------------------------------------------------------------------------- a chain of three


def chain_of_three(*counts: int, **rules: Any) -> Image:
    ladder = (LIGHT, "medium", HEAVY)
    roles = tuple(Assignment(role, 1) for role, count in zip(ladder, counts, strict=True) for _ in range(count))
    of = Plan(1, roles, (0.5, 0.8), ladder, rules=Rules(**rules))
    return Image(of, CascadeSettings({LIGHT: 2, "medium": 10, HEAVY: 50}))


def test_every_judge_of_a_chain_has_a_threshold_of_its_own():
    image = chain_of_three(1, 1, 1)
    image.begin()
    assert only(image.ready(0.4), Run).variant == "medium"
    assert only(image.ready(0.7), Run).variant == HEAVY
    assert image.ready() == (Answer(2, HEAVY),)


def test_the_medium_image_is_the_answer_where_its_judge_believes_it_or_the_heavy_one_would_be_late():
    for confidence, busy, path in ((0.8, 1.0, "medium"), (0.7, None, "medium-deadline")):
        image = chain_of_three(1, 1, 1)
        image.begin()
        image.ready(0.4)
        image.forecast.busy = {HEAVY: busy}
        assert only(image.ready(confidence), Answer) == Answer(1, path)


def test_a_variant_without_replicas_is_passed_over():
    image = chain_of_three(1, 0, 1)
    image.begin()
    assert only(image.ready(0.4), Run).variant == HEAVY


def test_a_later_failure_leaves_the_best_image_so_far():
    image = chain_of_three(1, 1, 1)
    image.begin()
    image.ready(0.4)
    image.ready(0.7)
    assert image.fail(Reason.LATE) == (Answer(1, "medium-deadline"),)


# -------------------------------------------------------------------------------------------------------- the cache


def cached(of: Plan | None = None, config: CascadeSettings = SETTINGS, **task: Any) -> Image:
    return Image(of, config, **{"cache": "read-write", **task})


def test_the_cache_is_asked_before_anything_runs():
    assert cached().take(Admitted()) == (LookUp(),)
    assert not isinstance(Image().take(Admitted())[0], LookUp)
    assert not isinstance(cached(variant=LIGHT).take(Admitted())[0], LookUp), "light images have no use for it"


def test_a_hit_enters_at_the_last_variant_and_resumes():
    image = cached()
    run = image.begin(HIT)
    assert (run.variant, run.resume, run.capture) == (HEAVY, STATE, False)
    assert image.ready() == (TellCache(0, 25), Answer(0, FROM_CACHE))


def test_a_resume_that_found_no_state_is_an_ordinary_image_and_the_cache_is_told():
    image = cached()
    image.begin(HIT)
    assert image.take(ImageReady(HEAVY, None, 0)) == (TellCache(0, 25), Answer(0, HEAVY))


@pytest.mark.parametrize(("direct", "variant"), [(0.5, HEAVY), (0.51, LIGHT)])
def test_only_a_hit_that_saves_enough_skips_the_chain(direct, variant):
    assert cached(config=replace(SETTINGS, direct=direct)).begin(HIT).variant == variant
    assert cached(plan(direct=direct), replace(SETTINGS, direct=1.0)).begin(HIT).variant == variant, "the plan decides"


@pytest.mark.parametrize("busy", [LATEST + 0.01, None])
def test_a_hit_that_would_be_late_enters_at_the_first_variant_and_still_resumes_if_deferred(busy):
    image = cached()
    image.forecast.busy = {HEAVY: busy}
    assert (image.begin(HIT).variant, image.progress.run and image.progress.run.resume) == (LIGHT, None)
    image.forecast.busy = {}
    assert only(image.ready(0.1), Run).resume == STATE


def test_a_miss_goes_through_the_chain_and_its_last_run_is_captured():
    image = cached()
    assert not image.begin(MISS).capture
    assert only(image.ready(0.1), Run).capture
    assert image.ready() == (TellCache(1, 0), Answer(1, HEAVY))


def test_who_only_reads_captures_nothing():
    image = cached(plan(light=0), cache="read")
    assert not image.begin(MISS).capture


def test_a_shortened_run_is_not_captured_and_a_state_that_saves_less_is_left_alone():
    assert not cached(plan(light=0, heavy_steps=20)).begin(MISS).capture
    assert cached(plan(light=0, heavy_steps=25)).begin(HIT).resume == STATE
    run = cached(plan(light=0, heavy_steps=24)).begin(HIT)
    assert (run.resume, run.steps) == (None, 24)


def test_the_plan_may_leave_the_cache_alone_unless_the_request_asks_for_it():
    assert cached(plan(reuse=False)).begin(HIT).variant == LIGHT
    assert cached(plan(reuse=False), cache_named=True).begin(HIT).resume == STATE


def test_a_prompt_that_only_the_last_variant_is_predicted_to_do_well_skips_the_chain():
    for prompt_class, variant in ((0, HEAVY), (1, LIGHT), (None, LIGHT)):
        assert cached(plan(heavy_levels=1)).begin(replace(MISS, prompt_class=prompt_class)).variant == variant


def test_the_cache_hears_of_a_request_that_it_was_of_no_use_for():
    image = cached()
    image.begin(CacheLookup())
    assert image.ready(0.9) == (Judged(LIGHT, 0.9, False), TellCache(None, 0), Answer(0, LIGHT))
    image = cached(plan(light_fallback=False))
    image.begin(HIT)
    assert image.fail(Reason.INVALID) == (TellCache(None, 0), Fail())


# ----------------------------------------------------------------------------------------------------- doubted resume

DOUBTED = replace(HIT, resume=replace(STATE, min_confidence=0.9))


def test_a_resumed_image_below_its_least_confidence_is_generated_from_noise():
    image = cached()
    image.begin(DOUBTED)
    show, run = image.ready(0.8)
    assert show == Show(0)
    assert isinstance(run, Run)
    assert (run.variant, run.resume, run.judge, run.until) == (HEAVY, None, True, LATEST)


@pytest.mark.parametrize(
    ("second", "answer"), [(0.81, Answer(1, HEAVY)), (0.8, Answer(1, HEAVY)), (0.79, Answer(0, FROM_CACHE))]
)
def test_the_more_confident_of_the_two_is_the_answer_and_the_cache_hears_of_the_last_run(second, answer):
    image = cached()
    image.begin(DOUBTED)
    image.ready(0.8)
    assert image.ready(second) == (TellCache(1, 0), answer)


@pytest.mark.parametrize(
    ("lookup", "confidence", "busy"),
    [(DOUBTED, 0.9, 1.0), (DOUBTED, 0.8, LATEST + 0.01), (DOUBTED, 0.8, None), (HIT, 0.0, 1)],
)
def test_what_is_believed_or_could_not_be_ready_in_time_is_not_generated_twice(lookup, confidence, busy):
    image = cached()
    image.begin(lookup)
    image.forecast.busy = {HEAVY: busy}
    assert image.ready(confidence) == (TellCache(0, 25), Answer(0, FROM_CACHE))


@pytest.mark.parametrize("fallback", [True, False])
def test_a_doubted_image_is_the_answer_where_the_second_one_does_not_come(fallback):
    image = cached(plan(light_fallback=fallback))
    image.begin(DOUBTED)
    image.ready(0.8)
    assert image.fail(Reason.LATE) == (TellCache(0, 25), Answer(0, FROM_CACHE))


# ------------------------------------------------------------------------------------------------------------- redraws


def test_a_doubtful_image_of_the_last_variant_is_generated_again_behind_all_others():
    image = Image(plan(light=0), REDRAW)
    assert image.begin().judge
    (run,) = image.ready(0.3)
    assert isinstance(run, Run)
    assert image.progress.phase is Phase.REDRAWING
    assert (run.redraw, run.judge, run.low_priority, run.until) == (1, True, True, LATEST)
    assert run.deadline > LATEST + SLO_S - 1
    (second,) = image.ready(0.5)
    assert isinstance(second, Run)
    assert second.redraw == 2
    assert image.ready(0.4) == (Answer(1, HEAVY),), "the best of three"


@pytest.mark.parametrize("confidence", [0.6, None])
def test_what_is_believed_or_not_judged_is_not_generated_again(confidence):
    image = Image(plan(light=0), REDRAW)
    image.begin()
    assert image.ready(confidence) == (Answer(0, HEAVY),)


@pytest.mark.parametrize("named", [{"seeded": True}, {"variant": HEAVY}])
def test_who_names_a_seed_or_a_variant_gets_it(named):
    image = Image(plan(light=0), REDRAW, **named)
    assert not image.begin().judge
    assert image.ready(0.1) == (Answer(0, HEAVY),)


@pytest.mark.parametrize("busy", [LATEST + 0.01, None])
def test_there_has_to_be_time_for_another_one(busy):
    image = Image(plan(light=0), REDRAW)
    image.begin()
    image.forecast.busy = {HEAVY: busy}
    assert image.ready(0.3) == (Answer(0, HEAVY),)


@pytest.mark.parametrize("reason", [Reason.LATE, Reason.INVALID])
def test_a_redraw_that_does_not_come_leaves_the_best_one(reason):
    image = Image(plan(light=0), REDRAW)
    image.begin()
    image.ready(0.3)
    assert image.fail(reason) == (Answer(0, HEAVY),)


def test_the_cache_is_told_before_a_redraw_and_not_again_after_it():
    image = cached(plan(light=0), REDRAW)
    image.begin(MISS)
    told, run = image.ready(0.3)
    assert told == TellCache(0, 0)
    assert isinstance(run, Run)
    assert (run.capture, run.resume) == (False, None)
    assert image.ready(0.9) == (Answer(1, HEAVY),)


def test_a_doubted_resume_counts_as_an_image_and_may_be_redrawn_too():
    image = cached(config=REDRAW)
    image.begin(DOUBTED)
    image.ready(0.3)
    told, run = image.ready(0.2)
    assert told == TellCache(1, 0)
    assert isinstance(run, Run)
    assert run.redraw == 1
    assert image.ready(0.1) == (Answer(0, FROM_CACHE),)


def test_a_doubted_resume_whose_second_image_does_not_come_may_be_redrawn():
    image = cached(config=REDRAW)
    image.begin(DOUBTED)
    image.ready(0.3)
    told, run = image.fail(Reason.INVALID)
    assert told == TellCache(0, 25)
    assert isinstance(run, Run)
    assert (run.redraw, image.progress.phase) == (1, Phase.REDRAWING)


def test_redraws_are_dropped_by_the_same_rule_as_other_runs():
    for drops, droppable in ((None, False), (4.0, True)):
        image = Image(plan(light=0, drop_after_s=drops), REDRAW)
        image.begin()
        assert only(image.ready(0.3), Run).droppable == droppable


def test_the_seeds_of_redraws_follow_from_the_first_one():
    assert next_seed(7) == next_seed(7) != 7
    assert 0 <= next_seed(2**32 - 1) < 2**32


# --------------------------------------------------------------------------------- entering at the last variant, late


def test_a_request_that_entered_at_the_last_variant_turns_to_the_first_when_it_could_only_be_late():
    image = Image(plan(heavy_entry=1.0), draw=0.0)
    run = image.begin()
    assert (run.variant, run.droppable, run.deadline) == (HEAVY, True, LATEST)
    (light,) = image.fail(Reason.DROPPED)
    assert isinstance(light, Run)
    assert (light.variant, light.deadline) == (LIGHT, LATEST)
    assert image.ready(0.9) == (Judged(LIGHT, 0.9, False), Answer(0, LIGHT))


@pytest.mark.parametrize(
    ("of", "task", "reason", "busy"),
    [
        (plan(heavy_entry=1.0), {}, Reason.DROPPED, LATEST + 0.01),  # the light one would be late, too
        (plan(heavy_entry=1.0), {}, Reason.INVALID, 1.0),
        (plan(heavy_entry=1.0), {"variant": HEAVY}, Reason.DROPPED, 1.0),
        (plan(light=0), {}, Reason.LATE, 1.0),
        (plan(heavy_entry=1.0, light_fallback=False), {}, Reason.DROPPED, 1.0),
    ],
)
def test_it_fails_where_nothing_can_stand_in(of, task, reason, busy):
    image = Image(of, draw=0.0, **task)
    assert image.begin().variant == HEAVY
    image.forecast.busy = {LIGHT: busy}
    assert image.fail(reason) == (Fail(),)


# ------------------------------------------------------------------------------------------------ a run gives no image


@pytest.mark.parametrize("reason", [Reason.LOST, Reason.FAILED])
def test_a_run_is_tried_once_more_on_another_replica(reason):
    image = Image()
    first = image.begin()
    assert image.fail(reason, "a") == (first._replace(avoid=("a",)),)
    assert image.fail(Reason.LOST, "b") == (Fail(),)


def test_a_lost_run_waits_for_any_replica_and_a_failed_one_is_not_given_to_the_only_one_again():
    for reason, kind in ((Reason.LOST, Run), (Reason.FAILED, Fail)):
        image = Image()
        image.begin()
        image.forecast.run_s = None
        assert isinstance(image.fail(reason)[0], kind)


@pytest.mark.parametrize("reason", [Reason.LATE, Reason.DROPPED, Reason.INVALID])
def test_nothing_else_is_tried_again(reason):
    image = Image()
    image.begin()
    assert image.fail(reason) == (Fail(),)


@pytest.mark.parametrize("reason", [Reason.LATE, Reason.DROPPED, Reason.INVALID])
def test_a_deferred_image_is_the_answer_where_the_next_one_does_not_come(reason):
    image = Image()
    image.begin()
    image.ready(0.1)
    assert image.fail(reason) == (Answer(0, LIGHT + AT_DEADLINE),)


def test_a_blocked_image_ends_the_request_although_there_is_another_image():
    image = Image()
    image.begin()
    assert image.fail(Reason.BLOCKED) == (Fail(),)
    image = Image()
    image.begin()
    *_, run = image.ready(0.1)
    assert run.variant == HEAVY
    assert image.fail(Reason.BLOCKED) == (Fail(),)


def test_an_image_that_is_not_finite_is_deferred_whatever_the_threshold_is():
    for threshold in (0.0, 0.5):
        image = Image(plan(threshold=threshold))
        image.begin()
        judged, run = image.fail(Reason.NOT_FINITE)
        assert judged == Judged(LIGHT, 0.0, deferred=True)
        assert (run.variant, run.avoid) == (HEAVY, ())
        assert image.ready() == (Answer(0, HEAVY),)


def test_there_is_no_image_to_answer_with_after_one_that_is_not_finite():
    image = Image()
    image.begin()
    image.forecast.busy = {HEAVY: LATEST + 1}
    _, run = image.fail(Reason.NOT_FINITE)
    assert run.variant == HEAVY
    assert image.fail(Reason.LATE) == (Fail(),)


@pytest.mark.parametrize("task", [{"variant": LIGHT}, {"variant": HEAVY}])
def test_a_named_variant_whose_image_is_not_finite_is_tried_once_more_and_is_an_error(task):
    image = Image(**task)
    first = image.begin()
    assert image.fail(Reason.NOT_FINITE, "a") == (first._replace(avoid=("a",)),)
    assert image.fail(Reason.NOT_FINITE, "b") == (Fail(),)


# ------------------------------------------------------------------------------------------------------- role changes


def test_a_run_whose_replica_gave_up_the_role_is_dispatched_again():
    image = Image()
    first = image.begin()
    assert image.fail(Reason.ROLE_CHANGED, "a", HEAVY) == (first,)


def test_or_the_replica_takes_it_along_into_its_new_role():
    image = Image(plan(dispatch_again=False, light_fallback=False))
    first = image.begin()
    (run,) = image.fail(Reason.ROLE_CHANGED, "a", HEAVY)
    assert run == first._replace(variant=HEAVY, role=HEAVY, stay="a")
    assert image.ready() == (Answer(0, HEAVY),)


def test_where_nobody_knows_the_new_role_it_is_dispatched_again():
    image = Image(plan(dispatch_again=False))
    first = image.begin()
    assert image.fail(Reason.ROLE_CHANGED, "a") == (first,)
    assert image.fail(Reason.ROLE_CHANGED, "a", "K=10") == (first,), "a role of a newer plan"


def test_a_run_that_was_taken_along_keeps_its_time_and_the_replicas_that_it_avoids():
    image = Image(plan(dispatch_again=False))
    image.begin()
    image.fail(Reason.LOST, "b")
    (run,) = image.fail(Reason.ROLE_CHANGED, "a", HEAVY)
    assert isinstance(run, Run)
    assert (run.avoid, run.stay, run.until) == (("b",), "a", 3 * SLO_S)
    assert image.fail(Reason.LOST, "a") == (Fail(),)


def test_a_resumed_run_that_was_taken_along_into_the_light_role_runs_from_noise_and_is_judged():
    image = cached(plan(dispatch_again=False))
    image.begin(HIT)
    (run,) = image.fail(Reason.ROLE_CHANGED, "a", LIGHT)
    assert isinstance(run, Run)
    assert (run.variant, run.resume, run.droppable) == (LIGHT, None, True)
    assert only(image.ready(0.1), Run).resume == STATE


def test_a_state_that_was_doubted_is_not_tried_again_after_a_role_change():
    image = cached(plan(dispatch_again=False))
    image.begin(DOUBTED)
    image.ready(0.4)
    image.fail(Reason.ROLE_CHANGED, "a", LIGHT)
    run = only(image.ready(0.1), Run)
    assert (run.variant, run.resume, run.judge) == (HEAVY, None, True)


def test_a_named_variant_is_still_generated_when_a_replica_took_its_run_along():
    image = Image(plan(dispatch_again=False), variant=HEAVY)
    image.begin()
    image.fail(Reason.ROLE_CHANGED, "a", LIGHT)
    show, run = image.ready(0.1)
    assert show == Show(0)
    assert isinstance(run, Run)
    assert run.variant == HEAVY


def test_a_redraw_that_was_taken_along_ends_the_redraws():
    image = Image(plan(dispatch_again=False, heavy_entry=1.0), REDRAW, draw=0.0)
    image.begin()
    image.ready(0.3)
    (run,) = image.fail(Reason.ROLE_CHANGED, "a", LIGHT)
    assert isinstance(run, Run)
    assert (run.variant, run.redraw, image.progress.phase) == (LIGHT, 1, Phase.REDRAWING)
    assert image.ready(0.9) == (Answer(0, HEAVY),)


# -------------------------------------------------------------------------------------------------- levels, by class


def levels(hurry: bool = False, **rules: Any) -> Plan:
    """Hard prompts (class 0) at the full number of steps or at K = 10, easy ones at K = 25 or by the light variant."""
    steps = (
        Level("full", HEAVY, "full"),
        Level("K=10", HEAVY, "K=10", skipped=10),
        Level("K=25", HEAVY, "K=25", skipped=25),
        Level("light", LIGHT, "light"),
    )
    routing = LevelRouting(steps, ((0.5, 0.5, 0, 0), (0, 0, 0.5, 0.5)), hurry)
    roles = tuple(Assignment(level.role, 1) for level in steps)
    return Plan(1, roles, (0.5,), routing=routing, rules=Rules(**rules))


@pytest.mark.parametrize(
    ("prompt_class", "draw", "role", "resume"),
    [
        (0, 0.1, "full", None),
        (0, 0.6, "K=10", Resume("early", 10)),
        (1, 0.1, "K=25", Resume("state", 25)),
        (1, 0.6, "light", None),
        (None, 0.1, "full", None),
    ],
)
def test_a_prompt_gets_the_level_that_the_plan_deals_to_its_class(prompt_class, draw, role, resume):
    image = cached(levels(), draw=draw)
    run = image.begin(replace(HIT, prompt_class=prompt_class))
    assert (run.role, run.resume) == (role, resume)
    assert image.ready(0.0) == (
        TellCache(0 if run.variant == HEAVY else None, run.resume.step if run.resume else 0),
        Answer(0, FROM_CACHE if resume else run.variant),
    ), "levels have no judge"


def test_a_level_whose_state_is_not_stored_runs_from_the_next_earlier_one_or_from_noise():
    early = replace(HIT, prompt_class=1, stored=((10, "early"),))
    assert cached(levels(), draw=0.1).begin(early).resume == Resume("early", 10)
    assert cached(levels(), draw=0.1).begin(replace(early, stored=())).resume is None


def test_only_whole_runs_from_noise_are_captured():
    missed = replace(MISS, prompt_class=0)
    assert cached(levels(), draw=0.1).begin(missed).capture
    assert not cached(levels(), draw=0.6).begin(replace(HIT, prompt_class=0, capture=True)).capture


def test_in_a_hurry_a_late_prompt_gets_the_best_faster_level_that_is_in_time():
    for hurry, role in ((True, "K=25"), (False, "full")):
        image = cached(levels(hurry), draw=0.1)
        image.forecast.busy = {"full": LATEST + 1, "K=10": None}
        assert image.begin(replace(HIT, prompt_class=0)).role == role


def test_in_a_hurry_nothing_changes_where_no_faster_level_of_the_variant_is_in_time():
    image = cached(levels(hurry=True), draw=0.1)
    image.forecast.busy = {"full": LATEST + 1, "K=10": None, "K=25": None}
    assert image.begin(replace(HIT, prompt_class=0)).role == "full"


def test_a_named_variant_is_not_dealt_a_level():
    run = Image(levels(), variant=HEAVY, draw=0.6).begin()
    assert (run.variant, run.role) == (HEAVY, HEAVY)


# ------------------------------------------------------------------------------------------------------- cancellation


def test_who_cancels_gets_no_answer_and_the_cache_is_told():
    assert Image().take(Cancelled()) == ()
    image = cached()
    image.take(Admitted())
    assert image.take(Cancelled()) == (TellCache(None, 0),)
    image = cached()
    image.begin(MISS)
    image.ready(0.1)
    assert image.take(Cancelled()) == (TellCache(None, 0),)
    assert image.progress.phase is Phase.OVER


def test_an_event_that_cannot_happen_in_a_phase_is_refused():
    image = Image()
    with pytest.raises(ValueError, match="ImageReady in the phase new"):
        image.take(ImageReady(LIGHT, 0.9))
    image.begin()
    with pytest.raises(ValueError, match="Admitted in the phase running"):
        image.take(Admitted())
    image.ready(0.9)
    with pytest.raises(ValueError, match="Cancelled in the phase over"):
        image.take(Cancelled())


# ------------------------------------------------------------------------------- whatever happens: random event orders

T = TypeVar("T")
#: Takes one of several choices.
Choose = Callable[[Sequence[T]], T]

THREE = CascadeSettings({LIGHT: 2, "medium": 10, HEAVY: 50}, redraw_below=0.6, redraw_most=2)
LOOKUPS = (CacheLookup(), MISS, HIT, DOUBTED, DOUBTED, replace(HIT, prompt_class=0), replace(MISS, prompt_class=1))
#: After this many events no replica changes its role any more, for that could go on for ever.
MOST_ROLE_CHANGES = 12


class Step(NamedTuple):
    before: Progress
    event: Event
    after: Progress
    actions: tuple[Action, ...]


def walk(choose: Choose[Any], *, cancels: bool = True) -> list[Step]:
    """One image from its admission to its end; plan, request, events and forecasts are chosen."""
    rules = Rules(
        heavy_entry=choose((0.0, 1.0)),
        drop_after_s=choose((None, 4.0)),
        light_fallback=choose((True, False)),
        dispatch_again=choose((True, False)),
        heavy_levels=choose((0, 1)),
        reuse=choose((True, True, True, False)),
        heavy_steps=choose((None, None, None, 20)),
    )
    ladder = choose(((LIGHT, HEAVY), (LIGHT, "medium", HEAVY), (HEAVY,)))
    with_replicas = choose((ladder, ladder[:1], ladder[-1:]))
    of = Plan(1, tuple(Assignment(v, 1) for v in with_replicas), (0.5,) * (len(ladder) - 1), ladder, rules=rules)
    if choose((False, False, True)):
        of = replace(levels(hurry=True), rules=rules)
    task = ImageTask(
        of,
        0.0,
        SLO_S,
        variant=choose((None,) * 6 + (LIGHT, HEAVY)),
        seeded=choose((False, False, False, True)),
        cache=choose(("read-write", "read-write", "read-write", "off")),
        draw=choose((0.1, 0.6)),
    )
    progress, steps = Progress(task, choose((THREE, THREE, replace(THREE, redraw_below=0.0)))), list[Step]()
    while progress.phase is not Phase.OVER:
        event = _event(progress, choose, steps, cancels)
        forecast = FakeForecast(run_s=choose((1.0,) * 4 + (LATEST + 1, None)))
        after, actions = advance(progress, event, forecast)
        steps.append(Step(progress, event, after, actions))
        progress = after
    return steps


def _event(progress: Progress, choose: Choose[Any], steps: Sequence[Step], cancels: bool) -> Event:
    if cancels and choose((False,) * 12 + (True,)):
        return Cancelled()
    if progress.phase is Phase.NEW:
        return Admitted()
    if progress.phase is Phase.LOOKING_UP:
        return LookupAnswered(choose(LOOKUPS))
    run = progress.run
    assert run is not None
    if choose((True, False)):
        resumed = (0, run.resume.step) if run.resume else (0,)
        return ImageReady(run.variant, choose((None, 0.1, 0.4, 0.9)), choose(resumed))
    reasons = tuple(it for it in Reason if it is not Reason.ROLE_CHANGED or len(steps) < MOST_ROLE_CHANGES)
    return RunFailed(choose(reasons), choose(("a", "b")), choose(("", *progress.task.plan.roles)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_image_ends_with_one_answer_or_one_failure(data):
    steps = walk(lambda choices: data.draw(st.sampled_from(choices)))
    ends = [action for step in steps for action in step.actions if isinstance(action, Answer | Fail)]
    last = steps[-1]
    if isinstance(last.event, Cancelled):
        assert not ends
        return
    (end,) = ends
    assert last.actions[-1] is end
    if isinstance(end, Answer):
        image = last.after.images[end.image]
        assert end.path in (image.variant, image.variant + AT_DEADLINE, FROM_CACHE)
        assert (end.path != FROM_CACHE) or image.run.resume is not None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_cache_is_told_the_end_of_every_lookup_once_and_never_without_one(data):
    steps = walk(lambda choices: data.draw(st.sampled_from(choices)))
    actions = [action for step in steps for action in step.actions]
    asked = sum(isinstance(action, LookUp) for action in actions)
    assert asked <= 1
    assert sum(isinstance(action, TellCache) for action in actions) == asked


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_finished_image_is_never_thrown_away(data):
    steps = walk(lambda choices: data.draw(st.sampled_from(choices)), cancels=False)
    last, event = steps[-1].after, steps[-1].event
    blocked = isinstance(event, RunFailed) and event.reason is Reason.BLOCKED  # then none of the prompt may be shown
    if not blocked and (last.task.plan.rules.light_fallback or last.doubted is not None):
        assert isinstance(steps[-1].actions[-1], Answer) or not last.images


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_one_run_is_under_way_while_an_image_is_running_and_no_run_has_more_than_two_attempts(data):
    for step in walk(lambda choices: data.draw(st.sampled_from(choices))):
        runs = [action for action in step.actions if isinstance(action, Run)]
        if step.after.phase in (Phase.RUNNING, Phase.REDRAWING):
            assert runs == [step.after.run] == [step.actions[-1]]
            assert len(runs[0].avoid) < 2
        else:
            assert not runs


def test_the_phases_follow_each_other_as_in_the_table_and_all_of_the_table_happens():
    seen: dict[tuple[Phase, type], set[Phase]] = {}
    chance = random.Random(1)
    for _ in range(8000):
        for step in walk(chance.choice):
            seen.setdefault((step.before.phase, type(step.event)), set()).add(step.after.phase)
    assert seen == {where: set(phases) for where, phases in TRANSITIONS.items()}


@pytest.mark.parametrize("confidence", [float("nan"), float("inf"), -float("inf"), -0.5, 1.5])
def test_a_value_that_is_no_confidence_defers_and_never_accepts(confidence):
    image = Image()
    image.begin()
    assert [type(action) for action in image.ready(confidence)] == [Judged, Show, Run]
    assert image.ready()[-1] == Answer(1, HEAVY)
    resumed = cached()
    resumed.begin(DOUBTED)
    assert only(resumed.ready(confidence), Run).resume is None
    assert all(it.confidence is None for it in (*image.progress.images, *resumed.progress.images))


# --------------------------------------------------------------------------------------------------------- edits


def test_an_edit_asks_no_cache_and_every_run_starts_from_its_picture() -> None:
    task = ImageTask(plan(), 0.0, SLO_S, cache="read-write", cache_named=True, strength=0.5)
    progress, actions = advance(Progress(task, REDRAW), Admitted(), FakeForecast())
    runs = []
    while started := [it for it in actions if isinstance(it, Run)]:
        runs += started
        progress, actions = advance(progress, ImageReady(runs[-1].variant, 0.1, resumed_at=1), FakeForecast())
    assert [run.variant for run in runs] == [LIGHT, HEAVY, HEAVY, HEAVY]
    assert {run.strength for run in runs} == {0.5}
    assert all(run.resume is None and not run.capture for run in runs)
    assert [it.path for it in actions if isinstance(it, Answer)] == [HEAVY]


@pytest.mark.parametrize(
    ("run", "own", "work"),
    [
        (Run(HEAVY, HEAVY, 0, 0), 50, 1.0),
        (Run(HEAVY, HEAVY, 0, 0, steps=25), 50, 0.5),
        (Run(HEAVY, HEAVY, 0, 0, strength=0.5), 50, 0.5),
        (Run(HEAVY, HEAVY, 0, 0, steps=20, strength=0.5), 50, 0.2),
        (Run(LIGHT, LIGHT, 0, 0, strength=0.75), 2, 0.5),
        (Run(LIGHT, LIGHT, 0, 0, strength=0.1), 2, 0.5),  # at least one step
        (Run(HEAVY, HEAVY, 0, 0, resume=Resume("state", 20)), 50, 0.6),
    ],
)
def test_the_work_of_a_run_is_its_share_of_the_steps(run: Run, own: int, work: float) -> None:
    assert run.work(own) == pytest.approx(work)

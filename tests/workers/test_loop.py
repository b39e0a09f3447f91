"""Images join, resume, are captured, leave and fail one by one, at the boundaries of single steps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from testing.toy_family import with_variants
from tests.workers.samples import image_request, profile
from weir.core import Overrides, Resume
from weir.errors import NotFinite, WeirError
from weir.plan import HEAVY, LIGHT
from weir.profiles import FixedCosts, Profile
from weir.states import State
from workers.emulated import EmulatedEngine
from workers.engine.engine import DenoiseJob, OutOfMemory
from workers.engine.scheduling import Recipe
from workers.engine.step_loop import Job, Outcome, Progress, StepLoop

STEPS = 8


def stepwise(step_s: float = 1e-9) -> Profile:
    """A profile that measured steps: images may join and leave at each."""
    whole = profile(1e-9, 1e-9)
    measured = {"step_s": (step_s, step_s), "fixed": FixedCosts(text_s=0, decode_s=0)}
    return with_variants(whole, light=measured, heavy=measured)


class Scripted(EmulatedEngine):
    """Remembers its calls; before each of them ``script`` may look, wait or raise."""

    def __init__(self) -> None:
        super().__init__(stepwise())
        self.calls: list[list[str]] = []
        self.fits = 1000
        self.spoil: str | None = None
        self.script: Any = lambda call: None

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        names = [s.order.request.id for s in samples]
        self.calls.append(names)
        self.script(len(self.calls))
        if len(samples) > self.fits:
            raise OutOfMemory("no room")
        if any("break" in s.order.request.prompt for s in samples):
            raise RuntimeError("no picture of that")
        super().step(samples)
        return [NotFinite("not a number") if name == self.spoil else None for name in names]


class Crowd:
    """Everybody who waits for an image."""

    def __init__(self, limit: int = 4):
        self.engine = Scripted()
        self.loop = StepLoop(self.engine, lambda order: limit, clock=lambda: 0.0)
        self.outcomes: dict[str, Outcome] = {}
        self.jobs: dict[str, Job] = {}
        self._all = threading.Condition()

    def ask(self, name: str, steps: int = STEPS, start: State | None = None, **fields: Any) -> None:
        variant = fields.pop("variant", HEAVY)
        on_step = fields.pop("on_step", None)
        request = image_request(name, **fields)
        order = DenoiseJob(Recipe(variant, request.width, request.height, steps, 1.0), request, start)
        self.jobs[name] = self.loop.submit(order, lambda outcome: self.take(name, outcome), on_step)

    def take(self, name: str, outcome: Outcome) -> None:
        with self._all:
            assert name not in self.outcomes, "answered twice"
            self.outcomes[name] = outcome
            self._all.notify()

    def answers(self, count: int) -> dict[str, Outcome]:
        with self._all:
            assert self._all.wait_for(lambda: len(self.outcomes) >= count, timeout=30)
        return self.outcomes

    def at_call(self, number: int, then: Any) -> None:
        """Runs ``then`` while the device is in its call of this number."""
        self.engine.script = lambda call: then() if call == number else None


def state(step: int) -> State:
    """As the emulated heavy variant captures them."""
    [drawn] = EmulatedEngine(stepwise()).generate(
        HEAVY, [image_request(overrides=Overrides(steps=2 * step), capture="p")]
    )
    return replace(drawn.states[-1], step=step, steps=STEPS)


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


def test_a_late_arrival_joins_at_the_next_step_and_each_leaves_on_its_own(crowd: Crowd) -> None:
    crowd.at_call(3, lambda: crowd.ask("late"))
    crowd.ask("early")
    answers = crowd.answers(2)
    assert crowd.engine.calls == [["early"]] * 3 + [["early", "late"]] * 5 + [["late"]] * 3
    assert [answers[n].batch_size for n in ("early", "late")] == [2, 2]
    assert [answers[n].left_together for n in ("early", "late")] == [1, 1]


def test_images_at_different_steps_share_calls_and_a_resumed_one_runs_its_rest_only(crowd: Crowd) -> None:
    crowd.at_call(1, lambda: crowd.ask("resumed", start=state(5), resume=Resume("-", 5)))
    crowd.ask("whole")
    answers = crowd.answers(2)
    assert crowd.engine.calls == [["whole"]] + [["whole", "resumed"]] * 3 + [["whole"]] * 4
    assert (answers["resumed"].drawn.first, answers["resumed"].drawn.steps) == (5, 3)


def test_there_are_never_more_than_planned_and_the_next_one_moves_up(crowd: Crowd) -> None:
    crowd = Crowd(limit=2)
    crowd.at_call(1, lambda: [crowd.ask(n) for n in ("b", "c")])
    crowd.ask("a")
    crowd.answers(3)
    assert max(map(len, crowd.engine.calls)) == 2
    assert crowd.engine.calls[8] == ["b", "c"]


def test_a_more_urgent_image_takes_the_place_and_the_other_goes_on_later() -> None:
    crowd = Crowd(limit=1)
    crowd.at_call(2, lambda: crowd.ask("urgent", deadline=10.0))
    crowd.ask("patient", deadline=1000.0)
    crowd.answers(2)
    turns = [call[0] for call in crowd.engine.calls]
    assert turns[:3] == ["patient", "patient", "urgent"]
    assert turns.count("patient") == turns.count("urgent") == STEPS
    assert turns[-1] == "patient"


def test_variants_do_not_share_calls_and_both_are_served(crowd: Crowd) -> None:
    crowd.at_call(1, lambda: crowd.ask("light", steps=2, variant=LIGHT))
    crowd.ask("heavy")
    crowd.answers(2)
    assert all(len(call) == 1 for call in crowd.engine.calls)


def test_a_cancelled_image_leaves_before_the_next_step_unanswered(crowd: Crowd) -> None:
    happens = {1: lambda: crowd.ask("gone"), 3: lambda: crowd.loop.cancel(crowd.jobs["gone"])}
    crowd.engine.script = lambda call: happens.get(call, lambda: None)()
    crowd.ask("stays")
    crowd.answers(1)
    assert "gone" not in crowd.outcomes
    assert sum("gone" in call for call in crowd.engine.calls) == 2


def test_one_image_that_breaks_its_call_fails_alone(crowd: Crowd) -> None:
    crowd.at_call(1, lambda: [crowd.ask(n, prompt="break" if n == "b" else n) for n in "abc"])
    crowd.ask("first")
    answers = crowd.answers(4)
    assert {n: a.drawn.error is None for n, a in answers.items()} == {"first": True, "a": True, "b": False, "c": True}
    assert "no picture of that" in str(answers["b"].drawn.error)


def test_numbers_that_are_not_finite_end_their_own_image_at_once(crowd: Crowd) -> None:
    crowd.engine.spoil = "bad"
    crowd.at_call(1, lambda: [crowd.ask("bad"), crowd.ask("good")])
    crowd.ask("first")
    answers = crowd.answers(3)
    assert answers["bad"].drawn.error == ("not_finite", "not a number")
    assert answers["good"].drawn.error is answers["first"].drawn.error is None
    assert sum("bad" in call for call in crowd.engine.calls) == 1


def test_out_of_memory_halves_the_call_answers_all_and_is_remembered_until_told(crowd: Crowd) -> None:
    crowd.engine.fits = 2
    crowd.at_call(1, lambda: [crowd.ask(n) for n in "abc"])
    crowd.ask("first")
    assert all(a.drawn.error is None for a in crowd.answers(4).values())
    assert sum(len(call) > 2 for call in crowd.engine.calls) == 1
    crowd.loop.forget_memory()
    crowd.engine.calls.clear()
    crowd.at_call(1, lambda: [crowd.ask(n) for n in "def"])
    crowd.ask("second")
    crowd.answers(8)
    assert any(len(call) == 4 for call in crowd.engine.calls)


def test_not_even_one_image_in_memory_is_an_answer_too(crowd: Crowd) -> None:
    crowd.engine.fits = 0
    crowd.ask("a")
    assert crowd.answers(1)["a"].drawn.error == ("out_of_memory", "no room")


def test_an_unfit_latent_is_refused_alone_before_any_step(crowd: Crowd) -> None:
    crowd.at_call(1, lambda: crowd.ask("unfit", start=replace(state(4), model="another"), resume=Resume("-", 4)))
    crowd.ask("fine")
    answers = crowd.answers(2)
    assert answers["unfit"].drawn.error is not None
    assert answers["unfit"].drawn.error[0] == "invalid_state"
    assert answers["unfit"].batch_size == 0
    assert crowd.engine.calls == [["fine"]] * STEPS


def test_an_engine_that_breaks_its_contract_leaves_nobody_waiting(crowd: Crowd) -> None:
    crowd.engine.finish = lambda samples: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    crowd.ask("a")
    assert "ZeroDivisionError" in str(crowd.answers(1)["a"].drawn.error)
    crowd.ask("b")
    crowd.answers(2)


def test_progress_is_told_after_every_step_with_a_preview(crowd: Crowd) -> None:
    seen: list[tuple[int, int, bytes | None]] = []

    def told(progress: Progress) -> None:
        seen.append((progress.step, progress.steps, progress.preview()))
        raise RuntimeError("the listener's own problem")

    crowd.ask("a", on_step=told)
    assert crowd.answers(1)["a"].drawn.error is None
    assert [(step, steps) for step, steps, _ in seen] == [(i + 1, STEPS) for i in range(STEPS)]
    assert all(png is not None and png.startswith(b"\x89PNG") for _, _, png in seen)


def test_a_profile_of_whole_batches_is_emulated_in_whole_batches() -> None:
    crowd = Crowd()
    crowd.engine.profile = profile(1e-9, 1e-9)
    crowd.at_call(1, lambda: [crowd.ask(n) for n in "ab"])
    crowd.ask("first")
    answers = crowd.answers(3)
    assert crowd.engine.calls == [["first"], ["a", "b"]]
    assert answers["a"].left_together == 2

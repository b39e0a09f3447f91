"""The step loop: images join, resume, finish, fail and are cancelled between single steps."""

from __future__ import annotations

import os
import sys
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
from workers.engine.step_loop import DenoiseTask, StepLoop, StepProgress, TaskOutcome

STEPS = 8


def stepwise(step_s: float = 1e-9) -> Profile:
    """A profile with step times: images can join and leave at every step."""
    whole = profile(1e-9, 1e-9)
    measured = {"step_s": (step_s, step_s), "fixed": FixedCosts(text_s=0, decode_s=0)}
    return with_variants(whole, light=measured, heavy=measured)


class Scripted(EmulatedEngine):
    """An emulated engine that records its calls. ``script`` runs at the beginning of each call."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.calls: list[list[str]] = []
        self.fits = 1000
        self.not_finite: str | None = None
        self.script: Any = lambda call: None

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        names = [s.job.request.id for s in samples]
        self.calls.append(names)
        self.script(len(self.calls))
        if len(samples) > self.fits:
            raise OutOfMemory("no room")
        if any("break" in s.job.request.prompt for s in samples):
            raise RuntimeError("cannot generate this image")
        super().step(samples)
        return [NotFinite("not a number") if name == self.not_finite else None for name in names]


class Clients:
    """Submits images to a step loop and collects their outcomes."""

    def __init__(self, limit: int = 4, profile: Profile | None = None):
        self.engine = Scripted(profile or stepwise())
        self.loop = StepLoop(self.engine, lambda job: limit, clock=lambda: 0.0)
        self.outcomes: dict[str, TaskOutcome] = {}
        self.tasks: dict[str, DenoiseTask] = {}
        self._all = threading.Condition()

    def ask(self, name: str, steps: int = STEPS, start: State | None = None, **fields: Any) -> None:
        variant = fields.pop("variant", HEAVY)
        on_step = fields.pop("on_step", None)
        request = image_request(name, **fields)
        job = DenoiseJob(Recipe(variant, request.size, steps, 1.0, "ddim"), request, start)
        self.tasks[name] = self.loop.submit(job, lambda outcome: self.take(name, outcome), on_step)

    def take(self, name: str, outcome: TaskOutcome) -> None:
        with self._all:
            assert name not in self.outcomes, "answered twice"
            self.outcomes[name] = outcome
            self._all.notify()

    def answers(self, count: int) -> dict[str, TaskOutcome]:
        with self._all:
            assert self._all.wait_for(lambda: len(self.outcomes) >= count, timeout=30)
        return self.outcomes

    def at_call(self, number: int, then: Any) -> None:
        """Runs ``then`` during call ``number`` of the engine."""
        self.engine.script = lambda call: then() if call == number else None


def state(step: int) -> State:
    """A state as the emulated heavy variant captures it."""
    [output] = EmulatedEngine(stepwise()).generate(
        HEAVY, [image_request(overrides=Overrides(steps=2 * step), capture="p")]
    )
    return replace(output.states[-1], step=step, steps=STEPS)


@pytest.fixture
def clients() -> Clients:
    return Clients()


def test_a_late_arrival_joins_at_the_next_step_and_images_finish_separately(clients: Clients) -> None:
    clients.at_call(3, lambda: clients.ask("late"))
    clients.ask("early")
    answers = clients.answers(2)
    assert clients.engine.calls == [["early"]] * 3 + [["early", "late"]] * 5 + [["late"]] * 3
    assert [answers[n].batch_size for n in ("early", "late")] == [2, 2]
    assert [answers[n].left_together for n in ("early", "late")] == [1, 1]


def test_images_at_different_steps_share_calls_also_when_one_is_resumed(clients: Clients) -> None:
    clients.at_call(1, lambda: clients.ask("resumed", start=state(5), resume=Resume("-", 5)))
    clients.ask("whole")
    answers = clients.answers(2)
    assert clients.engine.calls == [["whole"]] + [["whole", "resumed"]] * 3 + [["whole"]] * 4
    assert (answers["resumed"].output.first, answers["resumed"].output.steps) == (5, 3)


def test_a_batch_has_at_most_the_planned_size_and_a_waiting_image_takes_a_free_place(clients: Clients) -> None:
    clients = Clients(limit=2)
    clients.at_call(1, lambda: [clients.ask(n) for n in ("b", "c")])
    clients.ask("a")
    clients.answers(3)
    assert max(map(len, clients.engine.calls)) == 2
    assert clients.engine.calls[8] == ["b", "c"]


def test_a_more_urgent_image_displaces_another_one_which_continues_later() -> None:
    clients = Clients(limit=1)
    clients.at_call(2, lambda: clients.ask("urgent", deadline=10.0))
    clients.ask("less urgent", deadline=1000.0)
    clients.answers(2)
    turns = [call[0] for call in clients.engine.calls]
    assert turns[:3] == ["less urgent", "less urgent", "urgent"]
    assert turns.count("less urgent") == turns.count("urgent") == STEPS
    assert turns[-1] == "less urgent"


def test_images_of_different_variants_do_not_share_calls(clients: Clients) -> None:
    clients.at_call(1, lambda: clients.ask("light", steps=2, variant=LIGHT))
    clients.ask("heavy")
    clients.answers(2)
    assert all(len(call) == 1 for call in clients.engine.calls)


def test_a_cancelled_image_leaves_before_the_next_step_without_an_answer(clients: Clients) -> None:
    happens = {1: lambda: clients.ask("gone"), 3: lambda: clients.loop.cancel(clients.tasks["gone"])}
    clients.engine.script = lambda call: happens.get(call, lambda: None)()
    clients.ask("stays")
    clients.answers(1)
    assert "gone" not in clients.outcomes
    assert sum("gone" in call for call in clients.engine.calls) == 2


def test_an_image_that_breaks_its_call_fails_alone(clients: Clients) -> None:
    clients.at_call(1, lambda: [clients.ask(n, prompt="break" if n == "b" else n) for n in "abc"])
    clients.ask("first")
    answers = clients.answers(4)
    assert {n: a.output.error is None for n, a in answers.items()} == {"first": True, "a": True, "b": False, "c": True}
    assert "cannot generate this image" in str(answers["b"].output.error)


def test_an_image_with_non_finite_values_fails_alone_at_that_step(clients: Clients) -> None:
    clients.engine.not_finite = "bad"
    clients.at_call(1, lambda: [clients.ask("bad"), clients.ask("good")])
    clients.ask("first")
    answers = clients.answers(3)
    assert answers["bad"].output.error == ("not_finite", "not a number")
    assert answers["good"].output.error is answers["first"].output.error is None
    assert sum("bad" in call for call in clients.engine.calls) == 1


def test_out_of_memory_halves_the_call_until_memory_limits_are_forgotten(clients: Clients) -> None:
    clients.engine.fits = 2
    clients.at_call(1, lambda: [clients.ask(n) for n in "abc"])
    clients.ask("first")
    assert all(a.output.error is None for a in clients.answers(4).values())
    assert sum(len(call) > 2 for call in clients.engine.calls) == 1
    clients.loop.forget_memory()
    clients.engine.calls.clear()
    clients.at_call(1, lambda: [clients.ask(n) for n in "def"])
    clients.ask("second")
    clients.answers(8)
    assert any(len(call) == 4 for call in clients.engine.calls)


def test_an_image_that_does_not_fit_memory_gets_an_error(clients: Clients) -> None:
    clients.engine.fits = 0
    clients.ask("a")
    assert clients.answers(1)["a"].output.error == ("out_of_memory", "no room")


def test_an_image_whose_latent_does_not_fit_is_refused_alone_before_any_step(clients: Clients) -> None:
    clients.at_call(1, lambda: clients.ask("unfit", start=replace(state(4), model="another"), resume=Resume("-", 4)))
    clients.ask("fine")
    answers = clients.answers(2)
    assert answers["unfit"].output.error is not None
    assert answers["unfit"].output.error[0] == "invalid_state"
    assert answers["unfit"].batch_size == 0
    assert clients.engine.calls == [["fine"]] * STEPS


def test_every_image_is_answered_when_the_engine_breaks_its_contract(clients: Clients) -> None:
    clients.engine.finish = lambda samples: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    clients.ask("a")
    assert "ZeroDivisionError" in str(clients.answers(1)["a"].output.error)
    clients.ask("b")
    clients.answers(2)


def test_progress_is_reported_after_every_step_with_a_preview(clients: Clients) -> None:
    seen: list[tuple[int, int, bytes | None]] = []

    def on_step(progress: StepProgress) -> None:
        seen.append((progress.step, progress.steps, progress.preview()))
        raise RuntimeError("the callback failed")

    clients.ask("a", on_step=on_step)
    assert clients.answers(1)["a"].output.error is None
    assert [(step, steps) for step, steps, _ in seen] == [(i + 1, STEPS) for i in range(STEPS)]
    assert all(png is not None and png.startswith(b"\x89PNG") for _, _, png in seen)


def test_a_profile_of_whole_batches_is_emulated_with_whole_batches() -> None:
    clients = Clients(profile=profile(1e-9, 1e-9))
    clients.at_call(1, lambda: [clients.ask(n) for n in "ab"])
    clients.ask("first")
    answers = clients.answers(3)
    assert clients.engine.calls == [["first"], ["a", "b"]]
    assert answers["a"].left_together == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
@pytest.mark.parametrize("on_cpu", [True, False])
def test_on_the_cpu_the_loop_computes_at_a_lower_priority_than_the_rest_of_the_process(on_cpu: bool) -> None:
    engine = Scripted(stepwise())
    engine.on_cpu = on_cpu
    priorities: list[int] = []
    loop = StepLoop(engine, lambda job: 1)
    loop.on_device(lambda: priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))).result()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert priorities == [10 if on_cpu else own]

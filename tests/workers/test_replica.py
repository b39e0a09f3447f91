"""One replica: batches what fits together, answers every request, and lives through every plan."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testing.toy_family import with_variants
from tests.workers.samples import image_request, profile
from weir.config import FamilyConfig
from weir.core import ImageRequest, Overrides, Resume, WarmStart
from weir.errors import PlanError, WeirError
from weir.plan import HEAVY, LIGHT, Assignment, Level, LevelRouting, Plan
from weir.profiles import FixedCosts
from workers.emulated import EmulatedEngine
from workers.engine.engine import OutOfMemory
from workers.engine.state_memory import InMemoryStates, State, state_key
from workers.replica import Worker


class Scripted(EmulatedEngine):
    """Draws at once, unless the script says otherwise; remembers its calls.

    ``gate`` holds the device until it is set; a prompt with ``break`` fails its call; at most ``fits`` images fit; a
    ``broken`` device fails at everything.
    """

    def __init__(self) -> None:
        super().__init__(profile(1e-9, 1e-9))
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fits = 1000
        self.broken = False

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        self.beat = time.monotonic()
        self.batches.append([s.order.request.id for s in samples])
        assert self.gate.wait(30)
        if len(samples) > self.fits:
            raise OutOfMemory("no room")
        if self.broken or any("break" in s.order.request.prompt for s in samples):
            raise RuntimeError("no picture of that")
        return super().step(samples)


def plan(version: int = 1, light: int = 1, heavy: int = 1, batch: int = 4) -> dict[str, Any]:
    return Plan.split(version, light, heavy, light_batch=batch, heavy_batch=batch, threshold=0.5).to_dict()


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "nothing.json"
    path.write_text(profile(1e-9, 1e-9).model_dump_json())
    return path


@pytest.fixture
def worker(embedded: FamilyConfig, profile_file: Path) -> Worker:
    made = Worker(embedded.model_dump(), plan(), emulate=str(profile_file))
    made.engine = Scripted()
    return made


def script(worker: Worker) -> Scripted:
    assert isinstance(worker.engine, Scripted)
    return worker.engine


def ask(worker: Worker, name: str, variant: str = LIGHT, role: str = "", **fields: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(worker.generate(variant, image_request(name, **fields).to_dict(), role))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def queue_of(worker: Worker, length: int) -> None:
    async with asyncio.timeout(10):
        while (await worker.describe())["queued"] != length:
            await asyncio.sleep(0.001)


async def hold(worker: Worker) -> asyncio.Task[dict[str, Any]]:
    """Occupies the device, so that what is asked next has to queue."""
    script(worker).gate.clear()
    first = ask(worker, "first")
    await until(lambda: script(worker).batches)
    return first


# ------------------------------------------------------------------------------------------- answers


async def test_an_answer_carries_image_confidence_times_plan_and_queue(worker: Worker) -> None:
    answer = await ask(worker, "a")
    assert answer["id"] == "a"
    assert answer["image"].startswith(b"\x89PNG")
    assert 0 <= answer["confidence"] <= 1
    assert answer["queue_s"] >= 0
    assert answer["compute_s"] > 0
    assert (answer["batch_size"], answer["plan_version"], answer["queued"]) == (1, 1, 0)
    assert answer["replica"] == (await worker.describe())["replica"]
    assert answer["emulated"] is True
    assert answer["error"] is None


async def test_what_queues_up_during_a_batch_forms_the_next_one_up_to_the_plans_size(worker: Worker) -> None:
    first = await hold(worker)
    rest = [ask(worker, str(i)) for i in range(6)]
    await queue_of(worker, 6)
    script(worker).gate.set()
    answers = await asyncio.gather(first, *rest)
    assert script(worker).batches == [["first"], ["0", "1", "2", "3"], ["4", "5"]]
    assert [a["queued"] for a in answers] == [6, 2, 2, 2, 2, 0, 0]


async def test_requests_of_another_role_or_guidance_run_apart(worker: Worker) -> None:
    first = await hold(worker)
    rest = [
        ask(worker, "l"),
        ask(worker, "h", HEAVY),
        ask(worker, "g", HEAVY, overrides=Overrides(guidance=3.0)),
        ask(worker, "m"),
    ]
    await queue_of(worker, 4)
    script(worker).gate.set()
    await asyncio.gather(first, *rest)
    assert script(worker).batches[1:] == [["l", "m"], ["h"], ["g"]]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"id": "x"}, image_request("x").to_dict() | {"extra": 1}, image_request("x", width=999).to_dict()],
    ids=["empty", "fields missing", "unknown field", "size not served"],
)
async def test_a_wrong_request_is_answered_with_an_error_and_nothing_else(
    worker: Worker, wrong: dict[str, Any]
) -> None:
    answer = await worker.generate("light", wrong)
    assert answer["error"][0] == "invalid_value"
    assert (await worker.generate("medium", image_request().to_dict()))["error"][0] == "invalid_value"
    assert (await ask(worker, "fine"))["error"] is None


async def test_one_request_that_breaks_its_batch_fails_alone(worker: Worker) -> None:
    first = await hold(worker)
    rest = [ask(worker, "a"), ask(worker, "b", prompt="break"), ask(worker, "c"), ask(worker, "d")]
    await queue_of(worker, 4)
    script(worker).gate.set()
    await first
    errors = [a["error"] for a in await asyncio.gather(*rest)]
    assert [e is None for e in errors] == [True, False, True, True]
    assert errors[1][0] == "generation_failed"
    assert "no picture of that" in errors[1][1]


async def test_out_of_memory_halves_the_batch_answers_all_and_is_remembered(worker: Worker) -> None:
    first = await hold(worker)
    script(worker).fits = 2
    for expected in ([4, 2, 2], [2, 2]):
        rest = [ask(worker, str(i)) for i in range(4)]
        await queue_of(worker, 4)
        script(worker).gate.set()
        assert all(a["error"] is None and a["batch_size"] == 2 for a in await asyncio.gather(*rest))
        await first
        assert [len(b) for b in script(worker).batches[1:]] == expected
        script(worker).batches.clear()
        first = await hold(worker)
    script(worker).gate.set()
    await first


async def test_not_even_one_image_in_memory_is_an_answer_too(worker: Worker) -> None:
    script(worker).fits = 0
    assert (await ask(worker, "a"))["error"][0] == "out_of_memory"


async def test_a_cancelled_caller_leaves_the_queue(worker: Worker) -> None:
    first = await hold(worker)
    gone, stays = ask(worker, "gone"), ask(worker, "stays")
    await queue_of(worker, 2)
    gone.cancel()
    await queue_of(worker, 1)
    script(worker).gate.set()
    await asyncio.gather(first, stays)
    assert script(worker).batches == [["first"], ["stays"]]


# -------------------------------------------------------------------------------------------- states


class Stubborn(InMemoryStates):
    """Raises, or keeps everybody waiting."""

    def __init__(self, wait: threading.Event | None = None):
        super().__init__()
        self.wait = wait

    def get(self, key: str) -> State | None:
        if self.wait is None:
            raise ConnectionError("no such host")
        self.wait.wait(30)
        return None

    def put(self, request: ImageRequest, states: Sequence[State]) -> None:
        if self.wait is not None:
            self.wait.wait(30)
        raise ConnectionError("no such host")


@pytest.fixture
def kept(worker: Worker) -> InMemoryStates:
    worker.states = InMemoryStates()
    return worker.states


async def stored(worker: Worker) -> None:
    """Until nothing is being stored any more."""
    while worker._stores:
        await asyncio.sleep(0.001)


async def test_a_captured_run_is_resumed_by_another_request(worker: Worker, kept: InMemoryStates) -> None:
    first = await ask(worker, "first", HEAVY, capture="p")
    await stored(worker)
    assert first["captured"] == (1, 2)
    assert (first["resumed_at"], first["steps"]) == (0, 4)
    again = await ask(worker, "again", HEAVY, resume=Resume(state_key("p", "first", 2), 2))
    assert (again["resumed_at"], again["steps"], again["error"]) == (2, 2, None)
    assert (first["fetch_s"], again["fetch_s"] > 0) == (None, True)
    assert worker.failures == {}


@pytest.mark.parametrize(
    ("spoil", "refused"),
    [
        (lambda kept, state: None, False),
        (lambda kept, state: kept.put(image_request("first", capture="p"), [replace(state, model="another")]), True),
        (lambda kept, state: kept.put(image_request("first", capture="p"), [replace(state, steps=50)]), True),
    ],
    ids=["missing", "of another model", "of another run"],
)
async def test_a_state_that_is_missing_or_unfit_costs_speed_only(
    worker: Worker, kept: InMemoryStates, spoil: Any, refused: bool
) -> None:
    await ask(worker, "other", HEAVY, capture="p")
    await stored(worker)
    state = kept.get(state_key("p", "other", 2))
    assert state is not None
    spoil(kept, state)
    answer = await ask(worker, "a", HEAVY, resume=Resume(state_key("p", "first", 2), 2))
    assert (answer["resumed_at"], answer["steps"], answer["error"]) == (0, 4, None)
    assert answer["refused"] is refused, "only what was there can be"


async def test_a_store_that_fails_or_hangs_costs_speed_only_and_is_counted(worker: Worker) -> None:
    hung = threading.Event()
    for store in (Stubborn(), Stubborn(hung)):
        worker.states = store
        answer = await ask(worker, "a", HEAVY, resume=Resume("k", 2), capture="p")
        assert (answer["resumed_at"], answer["error"], answer["refused"]) == (0, None, False)
    assert answer["fetch_s"] >= worker.fetch_s, "the wait in vain counts"
    hung.set()
    await stored(worker)
    assert (await worker.describe())["failures"] == {"state_fetch": 2, "state_store": 2}


async def test_no_image_waits_for_its_states_to_be_stored_and_those_of_too_many_are_let_go(worker: Worker) -> None:
    hung = threading.Event()
    worker.states = Stubborn(hung)
    answers = [await ask(worker, f"a{i}", HEAVY, capture="p") for i in range(worker.most_storing + 1)]
    assert [answer["captured"] for answer in answers] == [(1, 2)] * worker.most_storing + [()]
    assert worker.failures == {"state_store": 1}
    hung.set()
    await stored(worker)


async def test_the_heavy_variant_starts_warm_from_the_light_latent_that_came_with_its_image(worker: Worker) -> None:
    light = await ask(worker, "a", LIGHT, keep_latent=True)
    assert isinstance(light["latent"], bytes)
    heavy = await ask(worker, "a", HEAVY, warm_start=WarmStart(light["latent"], 3))
    assert (heavy["resumed_at"], heavy["steps"], heavy["error"]) == (3, 1, None)
    spoilt = await ask(worker, "b", HEAVY, warm_start=WarmStart(light["latent"][:50], 3))
    assert (spoilt["resumed_at"], spoilt["error"]) == (0, None)
    assert worker.failures == {"invalid_state": 1}


async def test_a_step_outside_of_the_run_is_refused_by_name(worker: Worker) -> None:
    answer = await ask(worker, "a", HEAVY, resume=Resume("k", 4))
    assert answer["error"][0] == "invalid_value"
    assert "resume.step is 4" in answer["error"][1]


# --------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "plan",
        {},
        plan(2) | {"thresholds": [2]},
        plan(2) | {"threshold": 0.5},
        plan(2) | {"assignments": [["medium", 1]]},
        plan(2) | {"x": 1},
    ],
)
async def test_a_bad_plan_changes_nothing_and_never_raises(worker: Worker, wrong: Any) -> None:
    before = await worker.describe()
    await worker.reconfigure(wrong)
    assert await worker.describe() == before


async def test_a_plan_for_a_variant_that_is_not_here_is_ignored_and_the_last_good_one_stays(worker: Worker) -> None:
    before = await worker.describe()
    await worker.reconfigure(Plan(2, (Assignment("medium", 1),), (0.5,), ("medium", "heavy")).to_dict())
    assert await worker.describe() == before
    await worker.reconfigure(plan(3))
    assert (await worker.describe())["plan_version"] == 3


def test_a_replica_does_not_start_with_such_a_plan(embedded: FamilyConfig, profile_file: Path) -> None:
    with pytest.raises(PlanError, match="chain names the variant 'medium'; the replicas hold light, heavy"):
        Worker(embedded.model_dump(), Plan(1, (Assignment("medium", 1),), (), ("medium",)).to_dict(), str(profile_file))


async def test_an_older_plan_is_ignored(worker: Worker) -> None:
    await worker.reconfigure(plan(5, light=0, heavy=1))
    await worker.reconfigure(plan(4))
    assert (await worker.describe())["plan_version"] == 5
    assert (await worker.describe())["role"] == "heavy"


async def test_the_role_follows_the_rank(worker: Worker) -> None:
    await worker.reconfigure(plan(1), rank=1)
    assert (await worker.describe())["role"] == "heavy"
    await worker.reconfigure(plan(1), rank=0)
    assert (await worker.describe())["role"] == "light"


async def test_a_new_plan_leaves_the_running_batch_alone_and_holds_for_the_next(worker: Worker) -> None:
    first = await hold(worker)
    rest = [ask(worker, str(i)) for i in range(3)]
    await queue_of(worker, 3)
    await worker.reconfigure(plan(2, batch=2))
    script(worker).gate.set()
    answers = await asyncio.gather(first, *rest)
    assert all(a["error"] is None for a in answers)
    assert script(worker).batches == [["first"], ["0", "1"], ["2"]]
    assert answers[-1]["plan_version"] == 2


async def test_a_changed_role_sends_its_queue_elsewhere(worker: Worker) -> None:
    first = await hold(worker)
    queued = ask(worker, "queued")
    await queue_of(worker, 1)
    swapped = plan(2) | {"assignments": [["heavy", 4], ["light", 4]]}
    await worker.reconfigure(swapped)
    assert (await queued)["error"][0] == "role_changed"
    script(worker).gate.set()
    assert (await first)["error"] is None
    assert (await ask(worker, "late comer"))["error"] is None


def routed(version: int, *assignments: tuple[str, int]) -> dict[str, Any]:
    """A plan with two levels of the heavy variant, each with replicas of its own."""
    levels = (Level("whole", HEAVY, "whole"), Level("short", HEAVY, "short", steps=2))
    routing = LevelRouting(levels, ((0.5, 0.5),))
    return Plan(version, tuple(Assignment(*it) for it in assignments), (), (HEAVY,), routing=routing).to_dict()


async def test_a_batch_limit_goes_by_the_role_that_requests_were_dispatched_for(worker: Worker) -> None:
    await worker.reconfigure(routed(2, ("whole", 1), ("short", 3)))
    first = await hold(worker)
    rest = [ask(worker, str(i), HEAVY, "short") for i in range(3)] + [ask(worker, "own", HEAVY, "whole")]
    await queue_of(worker, 4)
    script(worker).gate.set()
    await asyncio.gather(first, *rest)
    assert script(worker).batches[1:] == [["0", "1", "2"], ["own"]]


async def test_only_requests_of_the_role_that_a_replica_gave_up_are_sent_away(worker: Worker) -> None:
    await worker.reconfigure(routed(2, ("whole", 1), ("short", 1)))
    first = await hold(worker)
    gone, stays = ask(worker, "gone", HEAVY, "whole"), ask(worker, "stays", HEAVY, "short")
    await queue_of(worker, 2)
    await worker.reconfigure(routed(3, ("short", 1), ("whole", 1)))
    assert (await gone)["error"][0] == "role_changed"
    script(worker).gate.set()
    assert [(await it)["error"] for it in (first, stays)] == [None, None]


async def test_a_role_that_nobody_has_any_more_is_still_served(worker: Worker) -> None:
    first = await hold(worker)
    queued = ask(worker, "queued")
    await queue_of(worker, 1)
    await worker.reconfigure(plan(2, light=0, heavy=2))
    script(worker).gate.set()
    assert [(await a)["error"] for a in (first, queued)] == [None, None]


# -------------------------------------------------------------------------------------------- health


async def test_a_healthy_replica_passes_idle_and_busy(worker: Worker) -> None:
    await worker.check_health()
    first = await hold(worker)
    await worker.check_health()
    script(worker).gate.set()
    await first


async def test_a_batch_without_progress_fails_the_health_check(worker: Worker) -> None:
    first = await hold(worker)
    worker.stall_s = 0.01
    await asyncio.sleep(0.02)
    with pytest.raises(RuntimeError, match="no progress"):
        await worker.check_health()
    script(worker).beat = time.monotonic()
    await worker.check_health()
    script(worker).gate.set()
    await first


async def test_an_idle_device_that_does_not_answer_fails_the_health_check(worker: Worker) -> None:
    hung = threading.Event()
    script(worker).probe = hung.wait  # type: ignore[method-assign, assignment]
    worker.probe_s = 0.01
    with pytest.raises(RuntimeError, match="did not answer"):
        await worker.check_health()
    hung.set()


async def test_a_lost_device_fails_the_health_check(worker: Worker) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: device lost")

    script(worker).probe = lost  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="device lost"):
        await worker.check_health()


async def test_a_replica_that_cannot_draw_any_more_takes_no_images_and_fails_the_health_check(worker: Worker) -> None:
    script(worker).broken = True
    assert (await worker.describe())["ready"]
    assert (await ask(worker, "a"))["error"][0] == "generation_failed"
    async with asyncio.timeout(10):
        while (await worker.describe())["ready"]:
            await asyncio.sleep(0.001)
    with pytest.raises(RuntimeError, match="cannot generate any more"):
        await worker.check_health()


async def test_prompts_that_fail_cast_no_lasting_doubt_on_a_replica_that_draws(worker: Worker) -> None:
    for number in range(3):
        assert (await ask(worker, str(number), prompt="break"))["error"] is not None
    await until(lambda: script(worker).batches.count(["trial"]) >= 2)  # by each variant
    assert (await ask(worker, "good"))["error"] is None
    assert (await worker.describe())["ready"]
    await worker.check_health()


# ---------------------------------------------------------------------------------------- real models


async def test_a_replica_with_real_models_serves_both_roles_and_resumes(embedded: FamilyConfig) -> None:
    worker = Worker(embedded.model_dump(), plan(), states=InMemoryStates)
    light, heavy = await asyncio.gather(ask(worker, "a"), ask(worker, "b", HEAVY))
    assert light["error"] is None
    assert heavy["error"] is None
    assert (light["steps"], heavy["steps"]) == (1, 4)
    assert light["emulated"] is False
    json.dumps(await worker.describe())
    whole = await ask(worker, "c", HEAVY, prompt="the same", capture="p")
    resumed = await ask(worker, "d", HEAVY, prompt="the same", resume=Resume(state_key("p", "c", 2), 2))
    assert (resumed["steps"], resumed["resumed_at"]) == (2, 2)
    first, second = (np.asarray(Image.open(io.BytesIO(a["image"]))).astype(int) for a in (whole, resumed))
    assert np.abs(first - second).max() <= 2


# ------------------------------------------------------------------------------------------ previews


class Stepwise(EmulatedEngine):
    """Advances by single steps, as the real engine does."""

    def __init__(self) -> None:
        usual = profile(1e-9, 1e-9)
        steps = {"step_s": (1e-9, 1e-9), "fixed": FixedCosts(text_s=0, decode_s=0)}
        super().__init__(with_variants(usual, heavy=steps))


async def parts(worker: Worker, **fields: Any) -> list[dict[str, Any]]:
    return [part async for part in worker.stream("heavy", image_request("a", **fields).to_dict())]


async def test_previews_come_evenly_apart_and_then_the_result(worker: Worker) -> None:
    worker.engine = Stepwise()
    *previews, result = await parts(worker, previews=3, overrides=Overrides(steps=20))
    assert [part["step"] for part in previews] == [5, 10, 15]
    assert all(part["preview"].startswith(b"\x89PNG") for part in previews)
    assert (result["id"], result["steps"], result["error"]) == ("a", 20, None)


@pytest.mark.parametrize("fields", [{"previews": 0}, {"previews": 5, "overrides": Overrides(steps=1)}])
async def test_where_there_is_nothing_to_show_only_the_result_comes(worker: Worker, fields: dict[str, Any]) -> None:
    worker.engine = Stepwise()
    assert ["preview" in part for part in await parts(worker, **fields)] == [False]


async def test_what_is_wrong_with_a_streamed_request_is_its_result(worker: Worker) -> None:
    (answer,) = await parts(worker, previews=2, width=7)
    assert answer["error"][0] == "invalid_value"


async def test_who_leaves_a_stream_takes_the_image_out(worker: Worker) -> None:
    held = await hold(worker)
    stream = worker.stream("heavy", image_request("b", previews=2).to_dict())
    first = asyncio.create_task(anext(stream))
    await queue_of(worker, 1)
    first.cancel()
    await asyncio.wait({first})
    await queue_of(worker, 0)
    script(worker).gate.set()
    assert (await held)["error"] is None

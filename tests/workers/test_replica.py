"""One replica: batching, results, errors, states, plans, health checks and previews."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testing.collector import recorded
from testing.tiny_models import SIZE
from testing.toy_family import with_variants
from tests.workers.samples import image_request, profile, with_bad_value
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageSize, Overrides, Resume, WarmStart
from weir.errors import ConfigError, PlanError, WeirError
from weir.plan import HEAVY, LIGHT, Assignment, Level, LevelRouting, Plan
from weir.profiles import FixedCosts
from workers.emulated import EmulatedEngine
from workers.engine.engine import OutOfMemory
from workers.engine.state_memory import InMemoryStates, State, state_key
from workers.replica import Worker


class Scripted(EmulatedEngine):
    """An engine without delays that records its batches.

    While ``gate`` is cleared, calls wait. Until ``loading`` is set, adapters load. A call with ``break`` in a prompt
    fails. At most ``fits`` images fit memory.
    A ``broken`` device fails every call.
    """

    def __init__(self) -> None:
        super().__init__(profile(1e-9, 1e-9))
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.loading = threading.Event()
        self.broken_adapter = False
        self.fits = 1000
        self.broken = False

    def prepare(self, request: ImageRequest) -> None:
        if request.adapters:
            assert self.loading.wait(30)
            if self.broken_adapter:
                raise ConfigError("adapters.night: /weights/night.safetensors: it is damaged; fetch it again")

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        self.beat = time.monotonic()
        self.batches.append([s.job.request.id for s in samples])
        assert self.gate.wait(30)
        if len(samples) > self.fits:
            raise OutOfMemory("no room")
        if self.broken or any("break" in s.job.request.prompt for s in samples):
            raise RuntimeError("cannot generate this image")
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
    worker = Worker(embedded.model_dump(), plan(), emulate=str(profile_file))
    worker.engine = Scripted()
    return worker


def script(worker: Worker) -> Scripted:
    assert isinstance(worker.engine, Scripted)
    return worker.engine


def ask(worker: Worker, name: str, variant: str = LIGHT, role: str = "", **fields: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(worker.generate(variant, image_request(name, **fields).to_dict(now=0.0), role))


async def state(worker: Worker) -> dict[str, Any]:
    """The description without the time."""
    return {name: value for name, value in (await worker.describe()).items() if name != "unix_time"}


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def queue_of(worker: Worker, length: int) -> None:
    async with asyncio.timeout(10):
        while (await worker.describe())["queued"] != length:
            await asyncio.sleep(0.001)


async def hold(worker: Worker) -> asyncio.Task[dict[str, Any]]:
    """Occupies the device, so that later requests have to queue."""
    script(worker).gate.clear()
    first = ask(worker, "first")
    await until(lambda: script(worker).batches)
    return first


# ------------------------------------------------------------------------------------------- results


async def test_a_result_has_image_confidence_times_plan_version_and_queue_length(worker: Worker) -> None:
    result = await ask(worker, "a")
    assert result["id"] == "a"
    assert result["image"].startswith(b"\x89PNG")
    assert 0 <= result["confidence"] <= 1
    assert result["queue_s"] >= 0
    assert result["compute_s"] > 0
    assert (result["batch_size"], result["plan_version"], result["queued"]) == (1, 1, 0)
    assert result["replica"] == (await worker.describe())["replica"]
    assert result["emulated"] is True
    assert result["error"] is None


async def test_a_run_is_a_span_of_the_callers_trace_with_its_steps_batch_and_times(worker: Worker) -> None:
    with recorded("worker") as collector:
        result = await ask(worker, "a", HEAVY, request_id="mine", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    [span] = collector.spans
    assert (span.service, span.name, span.failed) == ("weir-worker", "generate", False)
    assert (span.trace_id, span.parent_id) == ("a" * 32, "b" * 16)
    assert span.attributes == {
        "weir.request_id": "mine",
        "weir.variant": HEAVY,
        "weir.replica": result["replica"],
        "weir.steps": result["steps"],
        "weir.resumed_at": 0,
        "weir.batch_size": 1,
        "weir.queue_s": result["queue_s"],
        "weir.compute_s": result["compute_s"],
    }


async def test_the_span_of_a_failed_run_has_the_code_of_its_error(worker: Worker) -> None:
    with recorded("worker") as collector:
        await ask(worker, "a", prompt="break")
    [span] = collector.spans
    assert (span.failed, span.attributes["error.type"]) == (True, "generation_failed")


async def test_queued_requests_form_batches_of_at_most_the_plans_size(worker: Worker) -> None:
    first = await hold(worker)
    rest = [ask(worker, str(i)) for i in range(6)]
    await queue_of(worker, 6)
    script(worker).gate.set()
    results = await asyncio.gather(first, *rest)
    assert script(worker).batches == [["first"], ["0", "1", "2", "3"], ["4", "5"]]
    assert [a["queued"] for a in results] == [6, 2, 2, 2, 2, 0, 0]


async def test_requests_of_different_variants_or_guidance_do_not_share_a_batch(worker: Worker) -> None:
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
    "invalid",
    [
        {},
        {"id": "x"},
        image_request("x").to_dict(now=0.0) | {"extra": 1},
        image_request("x", size=ImageSize(999, SIZE)).to_dict(now=0.0),
    ],
    ids=["empty", "fields missing", "unknown field", "size not served"],
)
async def test_an_invalid_request_gets_an_error_and_later_requests_are_served(
    worker: Worker, invalid: dict[str, Any]
) -> None:
    result = await worker.generate("light", invalid)
    assert result["error"][0] == "invalid_value"
    assert (await worker.generate("medium", image_request().to_dict(now=0.0)))["error"][0] == "invalid_value"
    assert (await ask(worker, "fine"))["error"] is None


async def test_a_request_that_breaks_its_batch_fails_alone(worker: Worker) -> None:
    first = await hold(worker)
    rest = [ask(worker, "a"), ask(worker, "b", prompt="break"), ask(worker, "c"), ask(worker, "d")]
    await queue_of(worker, 4)
    script(worker).gate.set()
    await first
    errors = [a["error"] for a in await asyncio.gather(*rest)]
    assert [e is None for e in errors] == [True, False, True, True]
    assert errors[1][0] == "generation_failed"
    assert "cannot generate this image" in errors[1][1]


async def test_after_running_out_of_memory_all_images_are_generated_in_smaller_batches(worker: Worker) -> None:
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


async def test_an_image_that_does_not_fit_memory_gets_an_error(worker: Worker) -> None:
    script(worker).fits = 0
    assert (await ask(worker, "a"))["error"][0] == "out_of_memory"


async def test_a_cancelled_request_leaves_the_queue(worker: Worker) -> None:
    first = await hold(worker)
    moved, stays = ask(worker, "moved"), ask(worker, "stays")
    await queue_of(worker, 2)
    moved.cancel()
    await queue_of(worker, 1)
    script(worker).gate.set()
    await asyncio.gather(first, stays)
    assert script(worker).batches == [["first"], ["stays"]]


# -------------------------------------------------------------------------------------------- states


class FailingStore(InMemoryStates):
    """A store that raises, or first waits for an event."""

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
def store(worker: Worker) -> InMemoryStates:
    worker.states = InMemoryStates()
    return worker.states


async def stored(worker: Worker) -> None:
    """Waits until all states are stored."""
    while worker._stores:
        await asyncio.sleep(0.001)


async def test_a_request_resumes_from_the_captured_state_of_another_one(worker: Worker, store: InMemoryStates) -> None:
    first = await ask(worker, "first", HEAVY, capture="p")
    await stored(worker)
    assert first["captured"] == (1, 2)
    assert (first["resumed_at"], first["steps"]) == (0, 4)
    again = await ask(worker, "again", HEAVY, resume=Resume(state_key("p", "first", 2), 2))
    assert (again["resumed_at"], again["steps"], again["error"]) == (2, 2, None)
    assert (first["fetch_s"], again["fetch_s"] > 0) == (None, True)
    assert worker.failures == {}


@pytest.mark.parametrize(
    ("prepare", "refused"),
    [
        (lambda store, state: None, False),
        (lambda store, state: store.put(image_request("first", capture="p"), [replace(state, model="another")]), True),
        (lambda store, state: store.put(image_request("first", capture="p"), [replace(state, steps=50)]), True),
    ],
    ids=["missing", "of another model", "of another run"],
)
async def test_a_request_whose_state_is_missing_or_does_not_fit_runs_from_noise(
    worker: Worker, store: InMemoryStates, prepare: Any, refused: bool
) -> None:
    await ask(worker, "other", HEAVY, capture="p")
    await stored(worker)
    state = store.get(state_key("p", "other", 2))
    assert state is not None
    prepare(store, state)
    result = await ask(worker, "a", HEAVY, resume=Resume(state_key("p", "first", 2), 2))
    assert (result["resumed_at"], result["steps"], result["error"]) == (0, 4, None)
    assert result["refused"] is refused, "a missing state is not refused"


NIGHT = AdapterUse("night", 0.7, AdapterWeights("/weights/night.safetensors"))


async def test_images_do_not_wait_for_the_adapters_of_others(worker: Worker) -> None:
    waiting = ask(worker, "night", adapters=(NIGHT,))
    for name in "abc":
        assert (await ask(worker, name))["error"] is None
    assert not waiting.done()
    script(worker).loading.set()
    result = await waiting
    assert result["error"] is None
    assert result["queue_s"] > 0, "the time of loading is no network delay"


async def test_an_adapter_that_cannot_be_loaded_fails_its_request_and_shows_no_path(worker: Worker) -> None:
    script(worker).loading.set()
    script(worker).broken_adapter = True
    code, message = (await ask(worker, "a", adapters=(NIGHT,)))["error"]
    assert code == "invalid_value"
    assert "night" in message
    assert "/weights" not in message
    assert worker.ready
    assert (await ask(worker, "b"))["error"] is None


async def test_an_administrator_learns_what_is_wrong_with_an_adapter(worker: Worker) -> None:
    use = {"name": "night", "scale": 1.0, "weights": {"reference": "/weights/night.safetensors"}}
    assert await worker.check_adapter(use) == ""


async def test_a_state_of_other_adapters_is_refused_by_emulated_workers_too(
    worker: Worker, store: InMemoryStates
) -> None:
    script(worker).loading.set()
    await ask(worker, "first", HEAVY, capture="p", adapters=(NIGHT,))
    await stored(worker)
    resume = Resume(state_key("p", "first", 2), 2)
    assert (await ask(worker, "plain", HEAVY, resume=resume))["refused"]
    assert (await ask(worker, "half", HEAVY, resume=resume, adapters=(replace(NIGHT, scale=0.5),)))["refused"]
    assert (await ask(worker, "same", HEAVY, resume=resume, adapters=(NIGHT,)))["resumed_at"] == 2


async def test_failures_of_the_state_store_are_counted_and_requests_run_from_noise(worker: Worker) -> None:
    hung = threading.Event()
    for store in (FailingStore(), FailingStore(hung)):
        worker.states = store
        result = await ask(worker, "a", HEAVY, resume=Resume("k", 2), capture="p")
        assert (result["resumed_at"], result["error"], result["refused"]) == (0, None, False)
    assert result["fetch_s"] >= worker.fetch_s, "the time of a failed fetch is reported too"
    hung.set()
    await stored(worker)
    assert (await worker.describe())["failures"] == {"state_fetch": 2, "state_store": 2}


async def test_images_do_not_wait_for_a_slow_state_store_and_excess_states_are_dropped(worker: Worker) -> None:
    hung = threading.Event()
    worker.states = FailingStore(hung)
    results = [await ask(worker, f"a{i}", HEAVY, capture="p") for i in range(worker.most_storing + 1)]
    assert [result["captured"] for result in results] == [(1, 2)] * worker.most_storing + [()]
    assert worker.failures == {"state_store": 1}
    hung.set()
    await stored(worker)


async def test_the_heavy_variant_starts_warm_from_the_latent_in_the_light_result(worker: Worker) -> None:
    light = await ask(worker, "a", LIGHT, keep_latent=True)
    assert isinstance(light["latent"], bytes)
    heavy = await ask(worker, "a", HEAVY, warm_start=WarmStart(light["latent"], 3))
    assert (heavy["resumed_at"], heavy["steps"], heavy["error"]) == (3, 1, None)
    damaged = await ask(worker, "b", HEAVY, warm_start=WarmStart(light["latent"][:50], 3))
    assert (damaged["resumed_at"], damaged["error"]) == (0, None)
    assert worker.failures == {"invalid_state": 1}


async def test_a_resume_step_outside_the_run_is_refused_by_name(worker: Worker) -> None:
    result = await ask(worker, "a", HEAVY, resume=Resume("k", 4))
    assert result["error"][0] == "invalid_value"
    assert "resume.step is 4" in result["error"][1]


# --------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    "invalid",
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
async def test_an_invalid_plan_changes_nothing_and_does_not_raise(worker: Worker, invalid: Any) -> None:
    before = await state(worker)
    await worker.reconfigure(invalid)
    assert await state(worker) == before


async def test_a_plan_with_an_unknown_variant_is_ignored(worker: Worker) -> None:
    before = await state(worker)
    await worker.reconfigure(Plan(2, (Assignment("medium", 1),), (0.5,), ("medium", "heavy")).to_dict())
    assert await state(worker) == before
    await worker.reconfigure(plan(3))
    assert (await worker.describe())["plan_version"] == 3


def test_a_replica_does_not_start_with_a_plan_of_an_unknown_variant(embedded: FamilyConfig, profile_file: Path) -> None:
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


async def test_a_new_plan_does_not_affect_the_running_batch_and_applies_to_the_next(worker: Worker) -> None:
    first = await hold(worker)
    rest = [ask(worker, str(i)) for i in range(3)]
    await queue_of(worker, 3)
    await worker.reconfigure(plan(2, batch=2))
    script(worker).gate.set()
    results = await asyncio.gather(first, *rest)
    assert all(a["error"] is None for a in results)
    assert script(worker).batches == [["first"], ["0", "1"], ["2"]]
    assert results[-1]["plan_version"] == 2


async def test_queued_requests_are_returned_when_the_role_changes(worker: Worker) -> None:
    first = await hold(worker)
    queued = ask(worker, "queued")
    await queue_of(worker, 1)
    swapped = plan(2) | {"assignments": [["heavy", 4], ["light", 4]]}
    await worker.reconfigure(swapped)
    assert (await queued)["error"][0] == "role_changed"
    script(worker).gate.set()
    assert (await first)["error"] is None
    assert (await ask(worker, "late arrival"))["error"] is None


def routed(version: int, *assignments: tuple[str, int]) -> dict[str, Any]:
    """A plan with two levels of the heavy variant, each with its own replicas."""
    levels = (Level("whole", HEAVY, "whole"), Level("short", HEAVY, "short", steps=2))
    routing = LevelRouting(levels, ((0.5, 0.5),))
    return Plan(version, tuple(Assignment(*it) for it in assignments), (), (HEAVY,), routing=routing).to_dict()


async def test_the_batch_limit_is_that_of_the_role_for_which_requests_were_dispatched(worker: Worker) -> None:
    await worker.reconfigure(routed(2, ("whole", 1), ("short", 3)))
    first = await hold(worker)
    rest = [ask(worker, str(i), HEAVY, "short") for i in range(3)] + [ask(worker, "own", HEAVY, "whole")]
    await queue_of(worker, 4)
    script(worker).gate.set()
    await asyncio.gather(first, *rest)
    assert script(worker).batches[1:] == [["0", "1", "2"], ["own"]]


async def test_only_requests_of_the_lost_role_are_returned(worker: Worker) -> None:
    await worker.reconfigure(routed(2, ("whole", 1), ("short", 1)))
    first = await hold(worker)
    moved, stays = ask(worker, "moved", HEAVY, "whole"), ask(worker, "stays", HEAVY, "short")
    await queue_of(worker, 2)
    await worker.reconfigure(routed(3, ("short", 1), ("whole", 1)))
    assert (await moved)["error"][0] == "role_changed"
    script(worker).gate.set()
    assert [(await it)["error"] for it in (first, stays)] == [None, None]


async def test_queued_requests_of_a_role_without_replicas_are_served(worker: Worker) -> None:
    first = await hold(worker)
    queued = ask(worker, "queued")
    await queue_of(worker, 1)
    await worker.reconfigure(plan(2, light=0, heavy=2))
    script(worker).gate.set()
    assert [(await a)["error"] for a in (first, queued)] == [None, None]


# -------------------------------------------------------------------------------------------- health


async def test_a_healthy_replica_passes_the_health_check_idle_and_busy(worker: Worker) -> None:
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


async def test_a_replica_that_fails_its_self_test_is_not_ready_and_fails_the_health_check(worker: Worker) -> None:
    script(worker).broken = True
    assert (await worker.describe())["ready"]
    assert (await ask(worker, "a"))["error"][0] == "generation_failed"
    async with asyncio.timeout(10):
        while (await worker.describe())["ready"]:
            await asyncio.sleep(0.001)
    with pytest.raises(RuntimeError, match="self-test failed"):
        await worker.check_health()


async def test_a_replica_that_passes_its_self_test_after_failed_prompts_stays_ready(worker: Worker) -> None:
    for number in range(3):
        assert (await ask(worker, str(number), prompt="break"))["error"] is not None
    await until(lambda: script(worker).batches.count(["self-test"]) >= 2)  # one for each variant
    assert (await ask(worker, "good"))["error"] is None
    assert (await worker.describe())["ready"]
    await worker.check_health()


# ---------------------------------------------------------------------------------------- real models


def test_a_replica_with_a_variant_that_generates_no_images_does_not_start(
    embedded: FamilyConfig, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "light_unet", tmp_path / "unet")
    with_bad_value(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.weight", float("nan"))
    broken = with_variants(embedded, light={"unet": str(tmp_path / "unet")})
    with pytest.raises(ConfigError, match=rf"light\.unet: {tmp_path}/unet: .*conv_in\.weight of its unet"):
        Worker(broken.model_dump(), plan())


async def test_a_result_has_the_number_of_tokens_that_were_not_used(embedded: FamilyConfig) -> None:
    worker = Worker(embedded.model_dump(), plan())
    result = await ask(worker, "a", HEAVY, prompt="x" * 370, negative_prompt="y" * 40)
    assert (result["unused_tokens"], result["unused_negative_tokens"]) == (130, 0)


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
    """An emulated engine that advances by single steps, like the real one."""

    def __init__(self) -> None:
        usual = profile(1e-9, 1e-9)
        steps = {"step_s": (1e-9, 1e-9), "fixed": FixedCosts(text_s=0, decode_s=0)}
        super().__init__(with_variants(usual, heavy=steps))


async def parts(worker: Worker, **fields: Any) -> list[dict[str, Any]]:
    return [part async for part in worker.stream("heavy", image_request("a", **fields).to_dict(now=0.0))]


async def test_a_stream_yields_evenly_spaced_previews_and_then_the_result(worker: Worker) -> None:
    worker.engine = Stepwise()
    *previews, result = await parts(worker, previews=3, overrides=Overrides(steps=20))
    assert [part["step"] for part in previews] == [5, 10, 15]
    assert all(part["preview"].startswith(b"\x89PNG") for part in previews)
    assert (result["id"], result["steps"], result["error"]) == ("a", 20, None)


@pytest.mark.parametrize("fields", [{"previews": 0}, {"previews": 5, "overrides": Overrides(steps=1)}])
async def test_a_stream_without_previews_yields_only_the_result(worker: Worker, fields: dict[str, Any]) -> None:
    worker.engine = Stepwise()
    assert ["preview" in part for part in await parts(worker, **fields)] == [False]


async def test_an_invalid_streamed_request_yields_its_error_as_the_result(worker: Worker) -> None:
    (result,) = await parts(worker, previews=2, size="7x32")
    assert result["error"][0] == "invalid_value"


async def test_closing_a_stream_cancels_the_image(worker: Worker) -> None:
    held = await hold(worker)
    stream = worker.stream("heavy", image_request("b", previews=2).to_dict(now=0.0))
    first = asyncio.create_task(anext(stream))
    await queue_of(worker, 1)
    first.cancel()
    await asyncio.wait({first})
    await queue_of(worker, 0)
    script(worker).gate.set()
    assert (await held)["error"] is None

"""The emulated engine: latencies, states and confidences follow the profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from testing.tiny_models import SIZE
from testing.toy_family import with_variants
from tests.workers.samples import image_request, profile
from weir.core import Edit, ImageSize, Overrides, Resume
from weir.plan import HEAVY, LIGHT
from weir.profiles import FixedCosts, Profile
from workers import emulated
from workers.emulated import EmulatedEngine


class Clock:
    """Replaces ``time``: a sleep returns at once and advances the clock."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(emulated, "time", clock)
    return clock


def seconds(engine: EmulatedEngine, variant: str, count: int, **fields: object) -> float:
    started = emulated.time.monotonic()
    engine.generate(variant, [image_request(str(i), **fields) for i in range(count)])
    return emulated.time.monotonic() - started


@pytest.mark.parametrize(("variant", "count", "expected"), [(LIGHT, 1, 0.01), (LIGHT, 4, 0.02), (HEAVY, 4, 0.08)])
def test_a_batch_takes_the_profiles_latency(variant: str, count: int, expected: float) -> None:
    assert seconds(EmulatedEngine(profile()), variant, count) >= expected - 1e-3


def test_fewer_steps_take_proportionally_less_time() -> None:
    engine = EmulatedEngine(profile(heavy_s=5.0))
    assert 0.09 <= seconds(engine, HEAVY, 1, overrides=Overrides(steps=1)) < 0.11


def stepwise(step_s: float, fixed_s: float = 0.0) -> Profile:
    """A profile with the time of one step (twice as long for four images) and fixed costs."""
    whole = profile()
    measured = {"step_s": (step_s, 2 * step_s), "fixed": FixedCosts(text_s=fixed_s, decode_s=fixed_s)}
    return with_variants(whole, heavy=measured)


@pytest.mark.parametrize(("count", "steps", "expected"), [(1, 10, 0.02), (4, 10, 0.04), (4, 1, 0.004)])
def test_a_profile_with_step_times_takes_the_steps_and_the_fixed_costs(count: int, steps: int, expected: float) -> None:
    assert seconds(EmulatedEngine(stepwise(0.002)), HEAVY, count, overrides=Overrides(steps=steps)) >= expected - 1e-3
    fixed = seconds(EmulatedEngine(stepwise(1e-9, 0.005)), HEAVY, count, overrides=Overrides(steps=steps))
    assert fixed >= 2 * count * 0.005 - 1e-3


@pytest.mark.parametrize("make", [profile, lambda: stepwise(0.0016)], ids=["whole batches", "steps"])
def test_a_resumed_image_takes_only_its_remaining_steps(make: Callable[[], Profile]) -> None:
    engine = EmulatedEngine(make())
    [output] = engine.generate(HEAVY, [image_request(capture="p")])
    states = {state.step: state for state in output.states}
    assert list(states) == [5, 10, 15, 20, 25]
    started = emulated.time.monotonic()
    [rest] = engine.generate(HEAVY, [image_request(resume=Resume("-", 25))], [states[25]])
    assert (rest.first, rest.steps) == (25, 25)
    assert emulated.time.monotonic() - started >= 0.02 - 1e-3


@pytest.mark.parametrize("make", [profile, lambda: stepwise(0.0016)], ids=["whole batches", "steps"])
def test_an_image_takes_its_share_of_the_pixels_of_the_profiles_size(make: Callable[[], Profile]) -> None:
    engine = EmulatedEngine(make().measured_at(ImageSize(SIZE, SIZE)))
    own = seconds(engine, HEAVY, 1)
    assert seconds(engine, HEAVY, 1, size=ImageSize(3 * SIZE, 2 * SIZE)) == pytest.approx(6 * own, rel=0.01)


def test_captured_states_have_the_size_of_real_ones() -> None:
    engine = EmulatedEngine(profile(1e-9, 1e-9))
    [output] = engine.generate(HEAVY, [image_request(capture="p", size=ImageSize(1024, 1024))])
    assert output.states[0].latent.nbytes == 128 * 1024


def test_negligible_latencies_are_not_slept(clock: Clock) -> None:
    EmulatedEngine(profile(light_s=1e-9, heavy_s=1e-9)).generate(LIGHT, [image_request(str(i)) for i in range(1000)])
    assert clock.now == 0


def test_confidences_follow_the_profile_and_are_the_same_for_equal_requests() -> None:
    engine = EmulatedEngine(profile(1e-9, 1e-9, confidences=(0.1, 0.5, 0.5, 0.9)))
    requests = [image_request(str(i), seed=i) for i in range(2000)]
    first, again = (engine.generate(LIGHT, requests) for _ in range(2))
    assert [d.confidence for d in first] == [d.confidence for d in again]
    shares = Counter(d.confidence for d in first)
    assert 0.45 < shares[0.5] / 2000 < 0.55


def test_confidences_are_uniform_if_none_were_measured() -> None:
    engine = EmulatedEngine(profile(confidences=()))
    confidences = [engine.confidence(image_request(str(i), seed=i), LIGHT) for i in range(2000)]
    assert 0.45 < sum(c < 0.5 for c in confidences) / 2000 < 0.55


def test_heavy_images_have_no_confidence_and_every_image_is_a_png() -> None:
    import io

    from PIL import Image

    engine = EmulatedEngine(profile())
    assert engine.emulated
    for variant in (LIGHT, HEAVY):
        [output] = engine.generate(variant, [image_request()])
        assert (output.confidence is None) == (variant == HEAVY)
        assert Image.open(io.BytesIO(output.image)).size == (8, 8)


@pytest.mark.parametrize("make", [profile, lambda: stepwise(0.0016)], ids=["whole batches", "steps"])
def test_an_edit_takes_only_the_steps_that_its_strength_leaves(make: Callable[[], Profile]) -> None:
    engine = EmulatedEngine(make())
    [output] = engine.generate(HEAVY, [image_request(edit=Edit(b"", None, 0.5))])
    assert (output.first, output.steps) == (25, 25)
    whole, half = seconds(engine, HEAVY, 1), seconds(engine, HEAVY, 1, edit=Edit(b"", None, 0.5))
    assert half == pytest.approx(whole / 2, rel=0.1)

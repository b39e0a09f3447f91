"""``weir generate``: the cascade for one prompt without a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testing.toy_family import with_variants
from tests.workers.samples import profile
from weir.config import FamilyConfig
from weir.core import CacheLookup, ImageRequest, ImageSize, Overrides, Resume
from weir.errors import GenerationFailed, InvalidRequest, PlanError
from weir.plan import HEAVY, LIGHT
from weir.profiles import Profile
from weir.states import State
from workers.emulated import EmulatedEngine
from workers.engine.engine import EngineOutput
from workers.generate import Generated, LocalRequest, generate
from workers.models.family import Family


def generated(family: FamilyConfig, confidence: float = 0.6, **arguments: object) -> Generated:
    running = {"engine": EmulatedEngine(profile(1e-9, 1e-9, confidences=(confidence,)))}
    running |= {name: arguments.pop(name) for name in ("engine", "cache") if name in arguments}
    return generate(family, LocalRequest("a red circle", seed=1, **arguments), **running)  # type: ignore[arg-type]


@pytest.mark.parametrize(("threshold", "path"), [(0.0, LIGHT), (0.6, LIGHT), (0.61, HEAVY), (1.0, HEAVY)])
def test_an_image_below_the_threshold_is_deferred(embedded: FamilyConfig, threshold: float, path: str) -> None:
    result = generated(embedded, threshold=threshold)
    assert result.path == path
    assert result.confidences == {LIGHT: 0.6}
    assert result.model == f"tiny-{path}"


def test_a_ladder_of_three_runs_until_a_confidence_reaches_the_threshold(embedded: FamilyConfig) -> None:
    family, measured = with_medium(embedded, profile(1e-9, 1e-9), light=0.2, medium=0.6)
    result = [generated(family, engine=EmulatedEngine(measured), threshold=t) for t in (0.1, 0.5, 0.9)]
    assert [it.path for it in result] == ["light", "medium", "heavy"]
    assert result[2].confidences == {"light": 0.2, "medium": 0.6}
    assert set(result[1].seconds) == {"light", "medium"}


def with_medium(family: FamilyConfig, measured: Profile, light: float, medium: float) -> tuple[FamilyConfig, Profile]:
    """The family and profile with a medium variant, and the confidences of both judges."""
    middle = family.heavy.model_copy(update={"name": "tiny-medium", "steps": 2})
    measured = with_variants(measured, light={"confidences": (light,)})
    timed = measured.heavy.model_copy(update={"confidences": (medium,)})
    return (
        family.model_copy(update={"variants": {"light": family.light, "medium": middle, "heavy": family.heavy}}),
        measured.model_copy(update={"variants": {"light": measured.light, "medium": timed, "heavy": measured.heavy}}),
    )


def test_a_variant_can_be_forced(embedded: FamilyConfig) -> None:
    assert generated(embedded, variant=LIGHT, threshold=1.0).path == LIGHT
    heavy = generated(embedded, variant=HEAVY, threshold=0.0)
    assert heavy.path == HEAVY
    assert heavy.confidences == {}
    assert set(heavy.seconds) == {HEAVY}


def test_overrides_apply_to_the_last_variant_only(embedded: FamilyConfig) -> None:
    assert generated(embedded, threshold=0.0, overrides=Overrides(2, 3.0)).steps == 1
    assert generated(embedded, threshold=1.0, overrides=Overrides(2, 3.0)).steps == 2


def test_when_a_variant_fails_the_previous_image_is_the_answer(embedded: FamilyConfig) -> None:
    class NoHeavy(EmulatedEngine):
        def generate(self, variant: str, *what: Any) -> list[EngineOutput]:
            if variant in broken:
                return [EngineOutput(b"", None, 0, ("generation_failed", "no image of that"))]
            return super().generate(variant, *what)

    engine, broken = NoHeavy(profile(1e-9, 1e-9)), {HEAVY}
    assert generated(embedded, engine=engine, threshold=1.0).path == "light-deadline"
    broken.add(LIGHT)
    with pytest.raises(GenerationFailed, match="no image of that"):
        generated(embedded, engine=engine, threshold=1.0)


def test_an_image_that_is_not_finite_is_deferred_and_of_the_last_variant_an_error(embedded: FamilyConfig) -> None:
    class NotFinite(EmulatedEngine):
        def generate(self, variant: str, *what: Any) -> list[EngineOutput]:
            if variant in broken:
                return [EngineOutput(b"", None, 0, ("not_finite", "not a number"))]
            return super().generate(variant, *what)

    engine, broken = NotFinite(profile(1e-9, 1e-9)), {LIGHT}
    result = generated(embedded, engine=engine, threshold=0.0)
    assert (result.path, result.confidences) == (HEAVY, {})
    with pytest.raises(GenerationFailed, match="not a number"):
        generated(embedded, engine=engine, variant=LIGHT)
    broken.add(HEAVY)
    with pytest.raises(GenerationFailed, match="not a number"):
        generated(embedded, engine=engine)


def test_a_result_has_the_number_of_tokens_that_were_not_used(embedded: FamilyConfig) -> None:
    engine = Family.load(embedded, threads=1)
    result = generate(embedded, LocalRequest("x" * 370, 1, threshold=1.0, negative_prompt="y" * 40), engine=engine)
    assert (result.path, result.unused_tokens, result.unused_negative_tokens) == (HEAVY, 130, 0)


def test_a_real_family_generates_the_same_png_twice(embedded: FamilyConfig) -> None:
    request = LocalRequest("a red circle", seed=3, threshold=0.0)
    first, again = (generate(embedded, request, threads=1) for _ in range(2))
    assert first.image == again.image
    assert first.image.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wrong", [{"size": ImageSize(999, 64)}, {"overrides": Overrides(steps=0)}, {"overrides": Overrides(guidance=99.0)}]
)
def test_an_invalid_argument_is_refused_before_loading(embedded: FamilyConfig, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        generated(embedded, **({"engine": None} | wrong))


def test_a_threshold_out_of_range_is_refused(embedded: FamilyConfig) -> None:
    with pytest.raises(PlanError, match="threshold"):
        generated(embedded, threshold=1.5)


class FakeCache:
    """A cache that finds the last run for every prompt."""

    def __init__(self, min_confidence: float = 0.0) -> None:
        self.min_confidence = min_confidence
        self.last: State | None = None
        self.finished_runs: list[int | None] = []
        self.sought: list[int] = []
        self.refused: list[bool] = []

    def lookup(self, request: ImageRequest) -> CacheLookup:
        if self.last is None:
            return CacheLookup("p", capture=True)
        return CacheLookup("p", 1.0, "e", Resume("-", self.last.step, min_confidence=self.min_confidence))

    def state(self, key: str) -> State | None:
        return self.last

    def finished(self, request: ImageRequest, run: EngineOutput | None, sought: int = 0, refused: bool = False) -> None:
        self.finished_runs.append(None if run is None else run.first)
        self.sought.append(sought)
        self.refused.append(refused)
        if run is not None and run.states:
            assert request.capture == "p"
            self.last = run.states[-1]


def test_a_cache_hit_is_resumed_by_the_heavy_variant_at_once(embedded: FamilyConfig) -> None:
    cache, engine = FakeCache(), Family.load(embedded, threads=1)
    first = generated(embedded, engine=engine, threshold=1.0, cache=cache)
    again = generated(embedded, engine=engine, threshold=0.0, cache=cache)
    assert (first.path, first.resumed_at, set(first.seconds)) == (HEAVY, 0, {LIGHT, HEAVY})
    assert (again.path, again.resumed_at, set(again.seconds)) == ("cache", cache.finished_runs[1], {HEAVY})
    assert cache.finished_runs == cache.sought == [0, cache.last.step if cache.last else None]


@pytest.mark.parametrize(("resumed", "from_noise", "path"), [(0.4, 0.8, HEAVY), (0.4, 0.3, "cache")])
def test_a_doubted_resumed_image_is_generated_again_from_noise_and_the_better_one_is_the_answer(
    embedded: FamilyConfig, monkeypatch: pytest.MonkeyPatch, resumed: float, from_noise: float, path: str
) -> None:
    cache, engine = FakeCache(min_confidence=0.9), Family.load(embedded, threads=1)
    generated(embedded, engine=engine, threshold=1.0, cache=cache)
    generate, result = engine.generate, []

    def watched(*what: Any) -> list[EngineOutput]:
        [output] = generate(*what)
        result.append(replace(output, confidence=resumed if output.first else from_noise))
        return result[-1:]

    monkeypatch.setattr(engine, "generate", watched)
    again = generated(embedded, engine=engine, cache=cache)
    assert [output.first > 0 for output in result] == [True, False]
    assert (again.path, again.image) == (path, result[resumed < from_noise].image)
    assert cache.finished_runs == [0, 0], "the cache gets the run from noise"
    assert cache.sought == [0, 0], "a run from noise seeks no state"


def test_a_state_of_other_weights_is_refused_and_the_image_runs_from_noise(embedded: FamilyConfig) -> None:
    cache, engine = FakeCache(), Family.load(embedded, threads=1)
    generated(embedded, engine=engine, threshold=1.0, cache=cache)
    assert cache.last is not None
    cache.last = replace(cache.last, model="the same name, other weights")
    again = generated(embedded, engine=engine, threshold=1.0, cache=cache)
    assert (again.path, again.resumed_at) == (HEAVY, 0)
    assert cache.refused == [False, True]


def test_the_cache_learns_of_a_request_that_ends_with_a_light_image(embedded: FamilyConfig) -> None:
    cache = FakeCache()
    assert generated(embedded, threshold=0.0, cache=cache).path == LIGHT
    assert cache.finished_runs == [None]
    generated(embedded, variant=LIGHT, cache=cache)
    assert cache.finished_runs == [None], "the cache is not used if the light variant is forced"


def test_the_cache_learns_of_the_end_of_an_interrupted_request(embedded: FamilyConfig) -> None:
    class Interrupted(EmulatedEngine):
        def generate(self, *what: Any) -> list[EngineOutput]:
            raise KeyboardInterrupt

    cache = FakeCache()
    with pytest.raises(KeyboardInterrupt):
        generated(embedded, engine=Interrupted(profile()), cache=cache)
    assert cache.finished_runs == [None]

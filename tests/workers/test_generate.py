"""One prompt, no cluster: the light image if it is sure enough, the heavy one otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testing.toy_family import with_variants
from tests.workers.samples import profile
from weir.config import FamilyConfig
from weir.core import CacheLookup, ImageRequest, Resume
from weir.errors import GenerationFailed, InvalidRequest, PlanError
from weir.plan import HEAVY, LIGHT
from weir.profiles import Profile
from weir.states import State
from workers.emulated import EmulatedEngine
from workers.engine.engine import EngineOutput
from workers.generate import Generated, generate
from workers.models.family import Family


def draw(family: FamilyConfig, confidence: float = 0.6, **arguments: object) -> Generated:
    engine = EmulatedEngine(profile(1e-9, 1e-9, confidences=(confidence,)))
    return generate(family, "a red circle", **({"seed": 1, "engine": engine} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(("threshold", "path"), [(0.0, LIGHT), (0.6, LIGHT), (0.61, HEAVY), (1.0, HEAVY)])
def test_the_threshold_decides(embedded: FamilyConfig, threshold: float, path: str) -> None:
    made = draw(embedded, threshold=threshold)
    assert made.path == path
    assert made.confidences == {LIGHT: 0.6}
    assert made.model == f"tiny-{path}"


def test_a_ladder_of_three_is_climbed_until_a_judge_is_sure_enough(embedded: FamilyConfig) -> None:
    family, measured = with_medium(embedded, profile(1e-9, 1e-9), light=0.2, medium=0.6)
    made = [draw(family, engine=EmulatedEngine(measured), threshold=t) for t in (0.1, 0.5, 0.9)]
    assert [it.path for it in made] == ["light", "medium", "heavy"]
    assert made[2].confidences == {"light": 0.2, "medium": 0.6}
    assert set(made[1].seconds) == {"light", "medium"}


def with_medium(family: FamilyConfig, measured: Profile, light: float, medium: float) -> tuple[FamilyConfig, Profile]:
    """A variant more in the middle, and the confidences of both discriminators."""
    middle = family.heavy.model_copy(update={"name": "tiny-medium", "steps": 2})
    measured = with_variants(measured, light={"confidences": (light,)})
    timed = measured.heavy.model_copy(update={"confidences": (medium,)})
    return (
        family.model_copy(update={"variants": {"light": family.light, "medium": middle, "heavy": family.heavy}}),
        measured.model_copy(update={"variants": {"light": measured.light, "medium": timed, "heavy": measured.heavy}}),
    )


def test_a_variant_can_be_forced(embedded: FamilyConfig) -> None:
    assert draw(embedded, variant=LIGHT, threshold=1.0).path == LIGHT
    heavy = draw(embedded, variant=HEAVY, threshold=0.0)
    assert heavy.path == HEAVY
    assert heavy.confidences == {}
    assert set(heavy.seconds) == {HEAVY}


def test_overrides_count_for_the_last_variant_only(embedded: FamilyConfig) -> None:
    assert draw(embedded, threshold=0.0, steps=2, guidance=3.0).steps == 1
    assert draw(embedded, threshold=1.0, steps=2, guidance=3.0).steps == 2


def test_an_image_that_fails_leaves_the_one_before_it_as_the_answer(embedded: FamilyConfig) -> None:
    class NoHeavy(EmulatedEngine):
        def generate(self, variant: str, *what: Any) -> list[EngineOutput]:
            if variant in broken:
                return [EngineOutput(b"", None, 0, ("generation_failed", "no image of that"))]
            return super().generate(variant, *what)

    engine, broken = NoHeavy(profile(1e-9, 1e-9)), {HEAVY}
    assert draw(embedded, engine=engine, threshold=1.0).path == "light-deadline"
    broken.add(LIGHT)
    with pytest.raises(GenerationFailed, match="no image of that"):
        draw(embedded, engine=engine, threshold=1.0)


def test_a_real_family_generates_the_same_png_twice(embedded: FamilyConfig) -> None:
    first, again = (generate(embedded, "a red circle", seed=3, threshold=0.0, threads=1) for _ in range(2))
    assert first.image == again.image
    assert first.image.startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [{"size": 999}, {"steps": 0}, {"guidance": 99.0}])
def test_a_wrong_argument_is_refused_before_anything_loads(embedded: FamilyConfig, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        draw(embedded, **({"engine": None} | wrong))


def test_a_threshold_out_of_range_is_refused(embedded: FamilyConfig) -> None:
    with pytest.raises(PlanError, match="threshold"):
        draw(embedded, threshold=1.5)


class Remembers:
    """A cache that finds the last run, whatever the prompt."""

    def __init__(self, min_confidence: float = 0.0) -> None:
        self.min_confidence = min_confidence
        self.last: State | None = None
        self.told: list[int | None] = []
        self.sought: list[int] = []
        self.refused: list[bool] = []

    def lookup(self, request: ImageRequest) -> CacheLookup:
        if self.last is None:
            return CacheLookup("p", capture=True)
        return CacheLookup("p", 1.0, "e", Resume("-", self.last.step, min_confidence=self.min_confidence))

    def state(self, key: str) -> State | None:
        return self.last

    def finished(self, request: ImageRequest, run: EngineOutput | None, sought: int = 0, refused: bool = False) -> None:
        self.told.append(None if run is None else run.first)
        self.sought.append(sought)
        self.refused.append(refused)
        if run is not None and run.states:
            assert request.capture == "p"
            self.last = run.states[-1]


def test_what_the_cache_finds_is_resumed_by_the_heavy_variant_at_once(embedded: FamilyConfig) -> None:
    cache, engine = Remembers(), Family.load(embedded, threads=1)
    first = draw(embedded, engine=engine, threshold=1.0, cache=cache)
    again = draw(embedded, engine=engine, threshold=0.0, cache=cache)
    assert (first.path, first.resumed_at, set(first.seconds)) == (HEAVY, 0, {LIGHT, HEAVY})
    assert (again.path, again.resumed_at, set(again.seconds)) == ("cache", cache.told[1], {HEAVY})
    assert cache.told == cache.sought == [0, cache.last.step if cache.last else None]


@pytest.mark.parametrize(("resumed", "from_noise", "path"), [(0.4, 0.8, HEAVY), (0.4, 0.3, "cache")])
def test_a_resumed_image_that_is_doubted_is_generated_from_noise_and_the_better_judged_is_kept(
    embedded: FamilyConfig, monkeypatch: pytest.MonkeyPatch, resumed: float, from_noise: float, path: str
) -> None:
    cache, engine = Remembers(min_confidence=0.9), Family.load(embedded, threads=1)
    draw(embedded, engine=engine, threshold=1.0, cache=cache)
    generate, made = engine.generate, []

    def watched(*what: Any) -> list[EngineOutput]:
        [output] = generate(*what)
        made.append(replace(output, confidence=resumed if output.first else from_noise))
        return made[-1:]

    monkeypatch.setattr(engine, "generate", watched)
    again = draw(embedded, engine=engine, cache=cache)
    assert [output.first > 0 for output in made] == [True, False]
    assert (again.path, again.image) == (path, made[resumed < from_noise].image)
    assert cache.told == [0, 0], "the cache is told of the run from noise"
    assert cache.sought == [0, 0], "which looked for no state"


def test_a_state_of_other_weights_is_given_back_and_the_image_generated_from_noise(embedded: FamilyConfig) -> None:
    cache, engine = Remembers(), Family.load(embedded, threads=1)
    draw(embedded, engine=engine, threshold=1.0, cache=cache)
    assert cache.last is not None
    cache.last = replace(cache.last, model="the same name, other weights")
    again = draw(embedded, engine=engine, threshold=1.0, cache=cache)
    assert (again.path, again.resumed_at) == (HEAVY, 0)
    assert cache.refused == [False, True]


def test_a_light_image_that_is_kept_is_told_to_the_cache_too(embedded: FamilyConfig) -> None:
    cache = Remembers()
    assert draw(embedded, threshold=0.0, cache=cache).path == LIGHT
    assert cache.told == [None]
    draw(embedded, variant=LIGHT, cache=cache)
    assert cache.told == [None], "where light is forced, nothing is asked"


def test_the_cache_is_told_the_end_of_a_request_that_breaks_off(embedded: FamilyConfig) -> None:
    class Gone(EmulatedEngine):
        def generate(self, *what: Any) -> list[EngineOutput]:
            raise KeyboardInterrupt

    cache = Remembers()
    with pytest.raises(KeyboardInterrupt):
        draw(embedded, engine=Gone(profile()), cache=cache)
    assert cache.told == [None]

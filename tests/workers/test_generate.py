"""One prompt, no cluster: the light image if it is sure enough, the heavy one otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.workers.samples import profile
from weir.config import FamilyConfig
from weir.core import ImageRequest, Path, Role
from weir.errors import InvalidRequest, PlanError
from weir.states import State
from workers.emulated import EmulatedEngine
from workers.engine.engine import EngineOutput
from workers.generate import Generated, generate
from workers.models.family import Family


def draw(family: FamilyConfig, confidence: float = 0.6, **arguments: object) -> Generated:
    engine = EmulatedEngine(profile(1e-9, 1e-9, confidences=(confidence,)))
    return generate(family, "a red circle", **({"seed": 1, "engine": engine} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("threshold", "path"), [(0.0, Path.LIGHT), (0.6, Path.LIGHT), (0.61, Path.HEAVY), (1.0, Path.HEAVY)]
)
def test_the_threshold_decides(embedded: FamilyConfig, threshold: float, path: Path) -> None:
    drawn = draw(embedded, threshold=threshold)
    assert drawn.path is path
    assert drawn.confidence == 0.6
    assert drawn.model == ("tiny-light" if path is Path.LIGHT else "tiny-heavy")


def test_a_role_can_be_forced(embedded: FamilyConfig) -> None:
    assert draw(embedded, role=Role.LIGHT, threshold=1.0).path is Path.LIGHT
    heavy = draw(embedded, role=Role.HEAVY, threshold=0.0)
    assert heavy.path is Path.HEAVY
    assert heavy.confidence is None
    assert heavy.light_s == 0


def test_a_real_family_draws_the_same_png_twice(embedded: FamilyConfig) -> None:
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

    def __init__(self, accept: float = 0.0) -> None:
        self.accept = accept
        self.last: State | None = None
        self.told: list[int | None] = []
        self.refused: list[bool] = []

    def find(self, request: ImageRequest) -> tuple[ImageRequest, State | None]:
        step = 0 if self.last is None else self.last.step
        resumed = replace(request, resume_key="-", resume_step=step, capture=self.last is None, accept=self.accept)
        return resumed, self.last

    def finished(self, request: ImageRequest, run: EngineOutput | None, sought: bool, refused: bool) -> None:
        self.told.append(None if run is None else run.first)
        self.refused.append(refused)
        if run is not None and run.states:
            self.last = run.states[-1]


def test_what_the_cache_finds_goes_on_in_the_heavy_variant_at_once(embedded: FamilyConfig) -> None:
    cache, engine = Remembers(), Family.load(embedded, threads=1)
    first = draw(embedded, engine=engine, threshold=1.0, cache=cache)
    again = draw(embedded, engine=engine, threshold=0.0, cache=cache)
    assert (first.path, first.resumed_at, first.light_s > 0) == (Path.HEAVY, 0, True)
    assert (again.path, again.resumed_at, again.light_s) == (Path.CACHE, cache.told[1], 0.0)
    assert cache.told == [0, cache.last.step if cache.last else None]


@pytest.mark.parametrize(("resumed", "anew", "path"), [(0.4, 0.8, Path.HEAVY), (0.4, 0.3, Path.CACHE)])
def test_a_resumed_image_that_is_doubted_is_drawn_anew_and_the_better_judged_is_kept(
    embedded: FamilyConfig, monkeypatch: pytest.MonkeyPatch, resumed: float, anew: float, path: Path
) -> None:
    cache, engine = Remembers(accept=0.9), Family.load(embedded, threads=1)
    draw(embedded, engine=engine, threshold=1.0, cache=cache)
    generate, made = engine.generate, []

    def watched(*what: Any) -> list[EngineOutput]:
        [drawn] = generate(*what)
        made.append(replace(drawn, confidence=resumed if drawn.first else anew))
        return made[-1:]

    monkeypatch.setattr(engine, "generate", watched)
    again = draw(embedded, engine=engine, cache=cache)
    assert [drawn.first > 0 for drawn in made] == [True, False]
    assert (again.path, again.image) == (path, made[resumed < anew].image)
    assert cache.told == [0, 0], "the cache is told of the run from noise"


def test_a_state_of_other_weights_is_given_back_and_the_image_drawn_from_noise(embedded: FamilyConfig) -> None:
    cache, engine = Remembers(), Family.load(embedded, threads=1)
    draw(embedded, engine=engine, threshold=1.0, cache=cache)
    assert cache.last is not None
    cache.last = replace(cache.last, model="the same name, other weights")
    again = draw(embedded, engine=engine, threshold=1.0, cache=cache)
    assert (again.path, again.resumed_at) == (Path.HEAVY, 0)
    assert cache.refused == [False, True]


def test_a_light_image_that_is_kept_is_told_to_the_cache_too(embedded: FamilyConfig) -> None:
    cache = Remembers()
    assert draw(embedded, threshold=0.0, cache=cache).path is Path.LIGHT
    assert cache.told == [None]
    draw(embedded, role=Role.LIGHT, cache=cache)
    assert cache.told == [None], "where light is forced, nothing is asked"

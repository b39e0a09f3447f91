"""One prompt, no cluster: the light image if it is sure enough, the heavy one otherwise."""

from __future__ import annotations

import pytest

from tests.workers.samples import profile
from weir.config import FamilyConfig
from weir.core import Path, Role
from weir.errors import InvalidRequest, PlanError
from workers.emulated import EmulatedEngine
from workers.generate import Generated, generate


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

"""An approximation is worth it if it beats the same number of steps from noise and keeps the quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from quality.resume import RANKS, Approximations, best_warm_start, figures
from testing.toy_family import FAMILY
from weir.config import FamilyConfig
from weir.core import ImageRequest
from weir.states import State, capture_steps

STEPS = 10
PROMPTS = [f"prompt {i}" for i in range(8)]


@dataclass
class Output:
    image: bytes
    confidence: float | None = None
    error: tuple[str, str] | None = None
    states: tuple[State, ...] = ()
    latent: State | None = None


def painted(quality: float) -> bytes:
    """An image whose brightness is its quality."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2), round(255 * quality)).save(buffer, "PNG")
    return buffer.getvalue()


class Engine:
    """Every step from noise adds to the quality; a resumed image is perfect only with the prompt's own state."""

    def __init__(self, light: float):
        self.light = light

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[Output]:
        return [self._run(variant, r, s) for r, s in zip(requests, starts or [None] * len(requests), strict=True)]

    def _run(self, variant: str, request: ImageRequest, start: State | None) -> Output:
        if variant == "light":
            return Output(painted(self.light), confidence=request.seed / len(PROMPTS), latent=state(request, STEPS))
        steps = request.overrides.steps or STEPS
        if start is not None:
            own = start.model == request.prompt
            return Output(painted(1.0 if own else 1 - 0.08 * start.step))
        if request.warm_start is not None:
            return Output(painted(self.light + (1 - self.light) * (1 - request.warm_start.step / STEPS)))
        kept = tuple(state(request, k) for k in capture_steps(STEPS)) if request.capture is not None else ()
        return Output(painted(min(1.0, 0.2 + 0.08 * steps)), states=kept)


def state(request: ImageRequest, step: int) -> State:
    return State(np.zeros((4, 1, 1), np.float16), step, STEPS, "sampler", request.prompt)


class Brightness:
    def scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        assert len(prompts) == len(images)
        return {"brightness": np.array([np.asarray(image).mean() / 255 for image in images])}


#: Its heavy variant has as many steps as the engine of the test.
TOY = FamilyConfig.model_validate(FAMILY | {"heavy": FAMILY["heavy"] | {"steps": STEPS}})


def measures(light: float) -> Approximations:
    angles = np.linspace(0, 1, len(PROMPTS))
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1)
    return Approximations(Engine(light), Brightness(), PROMPTS, embeddings, TOY)


def test_resuming_from_the_own_state_loses_no_quality() -> None:
    own = [row for row in measures(0.9).resume() if row.similarity == (0.999, 1.001)]
    assert [row.step for row in own] == [1, 2, 3, 4, 5]
    for row in own:
        assert row.ratio["brightness"].ratio == pytest.approx(1.0)
        assert row.baseline["brightness"].ratio == pytest.approx(1 - 0.08 * row.step, abs=0.01)
        assert row.saved == row.step / STEPS
        assert row.worth("brightness")


def test_resuming_is_not_worth_it_if_fewer_steps_from_noise_are_as_good() -> None:
    rows = [row for row in measures(0.9).resume() if row.similarity != (0.999, 1.001)]
    assert rows
    assert not any(row.worth("brightness") for row in rows)


def test_every_prompt_resumes_from_a_source_of_each_rank() -> None:
    counted = sum(row.ratio["brightness"].count for row in measures(0.9).resume() if row.step == 1)
    assert counted == len(PROMPTS) * sum(rank < len(PROMPTS) for rank in RANKS)


def test_warm_starts_are_measured_on_deferred_prompts_only() -> None:
    rows = measures(0.9).warm_start(0.5)
    assert {row.ratio["brightness"].count for row in rows} == {4}
    assert measures(0.9).warm_start(0.0) == []


@pytest.mark.parametrize(("light", "expected"), [(0.99, 8), (0.92, 3), (0.1, 0)])
def test_the_best_warm_start_saves_most_among_those_that_keep_the_quality(light: float, expected: int) -> None:
    assert best_warm_start(measures(light).warm_start(1.1), "brightness") == expected


def test_figures_are_plain_data_with_the_best_warm_start() -> None:
    import json

    rows = measures(0.92).warm_start(1.1)
    read = json.loads(json.dumps(figures(len(PROMPTS), [], rows, "brightness")))
    assert (read["prompts"], read["warm_start_step"], len(read["warm_start"])) == (len(PROMPTS), 3, len(rows))
    assert set(read["warm_start"][0]["worth"]) == {"brightness"}

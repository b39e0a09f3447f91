"""An approximation is worth it where it beats as few steps from noise and keeps the whole run's quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from quality.resume import RANKS, Approximations, best_warm_start, figures
from weir.core import ImageRequest
from weir.states import State, capture_steps

STEPS = 10
PROMPTS = [f"prompt {i}" for i in range(8)]


@dataclass
class Picture:
    image: bytes
    confidence: float | None = None
    error: tuple[str, str] | None = None
    states: tuple[State, ...] = ()
    latent: State | None = None


def painted(quality: float) -> bytes:
    """A picture as bright as it is good."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2), round(255 * quality)).save(buffer, "PNG")
    return buffer.getvalue()


class Engine:
    """Every step from noise adds to the quality; a state is worth its steps as far as the prompts are alike."""

    def __init__(self, light: float):
        self.light = light

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[Picture]:
        return [self._draw(variant, r, s) for r, s in zip(requests, starts or [None] * len(requests), strict=True)]

    def _draw(self, variant: str, request: ImageRequest, start: State | None) -> Picture:
        if variant == "light":
            return Picture(painted(self.light), confidence=request.seed / len(PROMPTS), latent=state(request, STEPS))
        steps = request.overrides.steps or STEPS
        if start is not None:
            own = start.model == request.prompt
            return Picture(painted(1.0 if own else 1 - 0.08 * start.step))
        if request.warm_start is not None:
            return Picture(painted(self.light + (1 - self.light) * (1 - request.warm_start.step / STEPS)))
        kept = tuple(state(request, k) for k in capture_steps(STEPS)) if request.capture is not None else ()
        return Picture(painted(min(1.0, 0.2 + 0.08 * steps)), states=kept)


def state(request: ImageRequest, step: int) -> State:
    return State(np.zeros((4, 1, 1), np.float16), step, STEPS, "sampler", request.prompt)


class Brightness:
    def scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        assert len(prompts) == len(images)
        return {"brightness": np.array([np.asarray(image).mean() / 255 for image in images])}


def measures(light: float) -> Approximations:
    angles = np.linspace(0, 1, len(PROMPTS))
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1)
    return Approximations(Engine(light), Brightness(), PROMPTS, embeddings, size=2, steps=STEPS)


def test_a_prompt_that_goes_on_from_its_own_state_loses_nothing() -> None:
    own = [row for row in measures(0.9).resume() if row.similarity == (0.999, 1.001)]
    assert [row.step for row in own] == [1, 2, 3, 4, 5]
    for row in own:
        assert row.ratio["brightness"].ratio == pytest.approx(1.0)
        assert row.baseline["brightness"].ratio == pytest.approx(1 - 0.08 * row.step, abs=0.01)
        assert row.saved == row.step / STEPS
        assert row.worth("brightness")


def test_another_prompts_state_is_not_worth_it_where_as_few_steps_from_noise_do_as_well() -> None:
    rows = [row for row in measures(0.9).resume() if row.similarity != (0.999, 1.001)]
    assert rows
    assert not any(row.worth("brightness") for row in rows)


def test_every_prompt_is_measured_with_sources_from_itself_to_hardly_alike() -> None:
    counted = sum(row.ratio["brightness"].count for row in measures(0.9).resume() if row.step == 1)
    assert counted == len(PROMPTS) * sum(rank < len(PROMPTS) for rank in RANKS)


def test_a_warm_start_is_measured_on_what_is_deferred_only() -> None:
    rows = measures(0.9).warm_start(0.5)
    assert {row.ratio["brightness"].count for row in rows} == {4}
    assert measures(0.9).warm_start(0.0) == []


@pytest.mark.parametrize(("light", "expected"), [(0.99, 8), (0.92, 3), (0.1, 0)])
def test_the_warm_start_that_saves_most_and_keeps_the_quality_is_taken_or_none(light: float, expected: int) -> None:
    assert best_warm_start(measures(light).warm_start(1.1), "brightness") == expected


def test_a_profile_is_plain_data_with_the_verdict() -> None:
    import json

    rows = measures(0.92).warm_start(1.1)
    read = json.loads(json.dumps(figures(len(PROMPTS), [], rows, "brightness")))
    assert (read["prompts"], read["warm_start_step"], len(read["warm_start"])) == (len(PROMPTS), 3, len(rows))
    assert set(read["warm_start"][0]["worth"]) == {"brightness"}

"""What is lost where a run begins in the middle: resumed from another prompt's state, or warm from the light image.

Each is compared prompt by prompt with the whole heavy run of the same prompt and seed, and stands beside the honest
baseline: the heavy variant from noise with no more steps than were left.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from PIL import Image

from quality.paired import PairedRatio, paired_ratio
from weir.core import ImageRequest, Overrides, Resume, WarmStart
from weir.errors import ConfigError
from weir.plan import HEAVY, LIGHT
from weir.states import State, capture_steps

_BATCH = 16
#: An approximation keeps the quality if it keeps this share of the whole run's.
KEEPS = 0.97
#: Steps of a warm start, as shares of the whole run.
WARM_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: The sources of a prompt are its neighbours of these ranks among all prompts; rank 0 is the prompt itself.
RANKS = (0, 1, 4, 16, 64)

#: Told what is drawn, how many images of it are, and how many there will be.
Progress = Callable[[str, int, int], None]


class Picture(Protocol):
    """What the measures need of a drawn image (:class:`workers.engine.engine.EngineOutput`)."""

    image: bytes
    confidence: float | None
    error: tuple[str, str] | None
    states: tuple[State, ...]
    latent: State | None


class Engine(Protocol):
    """What draws (:class:`workers.engine.engine.Engine`)."""

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> Sequence[Any]: ...


class Judges(Protocol):
    """What judges (:class:`quality.suite.Suite`): by name, one number for each prompt and image, higher is better."""

    def scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Row:
    """One cell of a profile.

    Attributes:
        step: the first step that ran.
        saved: share of the whole run's steps that did not run.
        similarity: lower and upper bound of the prompts' similarity; None for a warm start.
        ratio: by judge, quality over the whole run's.
        baseline: the same for the heavy variant from noise with as few steps.
    """

    step: int
    saved: float
    similarity: tuple[float, float] | None
    ratio: dict[str, PairedRatio]
    baseline: dict[str, PairedRatio]

    def worth(self, judge: str) -> bool:
        """Better than the baseline, and good enough."""
        return self.ratio[judge].ratio > self.baseline[judge].ratio and self.ratio[judge].ratio >= KEEPS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"worth": {judge: self.worth(judge) for judge in self.ratio}}


class Approximations:
    """Measures one family's heavy variant; every run is drawn once.

    Args:
        prompts: held out from training, all different.
        embeddings: unit vectors [N, D] of the prompts, by the encoder that the cache looks them up with.
        size, steps: of the heavy variant's images and whole runs.
        variants: keys of the light and the heavy variant.
    """

    def __init__(
        self,
        engine: Engine,
        judges: Judges,
        prompts: Sequence[str],
        embeddings: np.ndarray,
        *,
        size: int,
        steps: int,
        variants: tuple[str, str] = (LIGHT, HEAVY),
        progress: Progress | None = None,
    ):
        self.prompts, self.similarities, self.steps = list(prompts), embeddings @ embeddings.T, steps
        self._engine, self._judges, self._progress = engine, judges, progress
        self._light, self._heavy = variants
        self._requests = [
            ImageRequest(f"resume-{i}", prompt, i, size, size, deadline=float("inf"))
            for i, prompt in enumerate(self.prompts)
        ]
        self._everyone = range(len(self.prompts))
        whole = self._draw("heavy", self._heavy, [replace(r, capture="") for r in self._requests])
        self._states: list[dict[int, State]] = [{s.step: s for s in picture.states} for picture in whole]
        self.whole = self._judge(whole, self._everyone)
        self._short: dict[int, dict[str, np.ndarray]] = {}

    # ---------------------------------------------------------------------------------------------- resume

    def resume(self, bins: Sequence[float] = (0.0, 0.7, 0.8, 0.9, 0.95, 0.999, 1.001)) -> list[Row]:
        """Rows by step and, within a step, by the similarity of the prompt to the one whose state it goes on from.

        The source has another seed than the prompt, as in a cache; where the prompt is its own source, the seed is
        its own too, and the run is the whole one but for what float16 loses.
        """
        pairs = self._pairs()
        similarity = np.array([self.similarities[i, j] for i, j in pairs])
        targets = [i for i, _ in pairs]
        rows = []
        for step in capture_steps(self.steps):
            requests = [replace(self._requests[i], resume=Resume("-", step)) for i in targets]
            drawn = self._draw(f"resumed at {step}", self._heavy, requests, [self._states[j][step] for _, j in pairs])
            scores = self._judge(drawn, targets)
            for low, high in pairwise(bins):
                inside = (low <= similarity) & (similarity < high)
                if all(quality[targets][inside].sum() > 0 for quality in self.whole.values()):
                    rows.append(self._row(step, (low, high), scores, np.array(targets), inside))
        return rows

    def _pairs(self) -> list[tuple[int, int]]:
        """(prompt, source) for every prompt and rank: from the prompt itself to hardly alike."""
        order = np.argsort(-self.similarities, axis=1, kind="stable")
        return [(i, int(order[i, rank])) for rank in RANKS if rank < len(order) for i in self._everyone]

    # ------------------------------------------------------------------------------------------ warm start

    def warm_start(self, threshold: float) -> list[Row]:
        """Rows by step, over the prompts whose light image a threshold defers; empty if it defers none."""
        light = self._draw("light", self._light, [replace(r, keep_latent=True) for r in self._requests])
        deferred = [i for i in self._everyone if (light[i].confidence or 0.0) < threshold]
        rows = []
        for share in WARM_SHARES if deferred else ():
            step = round(share * self.steps)
            requests = [
                replace(self._requests[i], warm_start=WarmStart(light[i].latent.to_bytes(), step)) for i in deferred
            ]
            scores = self._judge(self._draw(f"warm at {step}", self._heavy, requests), deferred)
            everyone = np.ones(len(deferred), bool)
            rows.append(self._row(step, None, scores, np.array(deferred), everyone))
        return rows

    # -------------------------------------------------------------------------------------------- drawing

    def _row(
        self,
        step: int,
        similarity: tuple[float, float] | None,
        scores: dict[str, np.ndarray],
        targets: np.ndarray,
        inside: np.ndarray,
    ) -> Row:
        short, chosen = self._from_noise(self.steps - step), targets[inside]
        return Row(
            step,
            step / self.steps,
            similarity,
            {judge: paired_ratio(values[inside], self.whole[judge][chosen]) for judge, values in scores.items()},
            {judge: paired_ratio(values[chosen], self.whole[judge][chosen]) for judge, values in short.items()},
        )

    def _from_noise(self, steps: int) -> dict[str, np.ndarray]:
        """The scores of all prompts at so few steps."""
        if steps not in self._short:
            requests = [replace(r, overrides=Overrides(steps=steps)) for r in self._requests]
            drawn = self._draw(f"heavy, {steps} steps", self._heavy, requests)
            self._short[steps] = self._judge(drawn, self._everyone)
        return self._short[steps]

    def _draw(
        self, what: str, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State] = ()
    ) -> list[Any]:
        drawn: list[Any] = []
        for i in range(0, len(requests), _BATCH):
            drawn += self._engine.generate(variant, requests[i : i + _BATCH], starts[i : i + _BATCH])
            if self._progress is not None:
                self._progress(what, len(drawn), len(requests))
        for picture in drawn:
            if picture.error is not None:
                raise ConfigError(f"{what}: the family draws no picture: {picture.error[1]}")
        return drawn

    def _judge(self, drawn: Sequence[Any], of: Sequence[int]) -> dict[str, np.ndarray]:
        images = [Image.open(io.BytesIO(picture.image)).convert("RGB") for picture in drawn]
        return self._judges.scores([self.prompts[i] for i in of], images)


def figures(prompts: int, resumed: Sequence[Row], warm: Sequence[Row], judge: str) -> dict[str, Any]:
    """JSON-ready: all rows, and the warm start that is worth it by the judge's word."""
    return {
        "prompts": prompts,
        "resume": [row.to_dict() for row in resumed],
        "warm_start": [row.to_dict() for row in warm],
        "warm_start_step": best_warm_start(warm, judge),
    }


def best_warm_start(rows: Sequence[Row], judge: str) -> int:
    """The warm start that saves most among those that are worth it; 0: none is, leave it off."""
    return max((row.step for row in rows if row.worth(judge)), default=0)

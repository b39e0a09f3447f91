"""Quality of runs that skip steps: resumed from the state of another prompt, or started from the light image.

Each image is compared with the whole heavy run of the same prompt and seed. The baseline beside it is the heavy
variant from noise with as many steps as the approximation ran.
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
from weir.config import FamilyConfig
from weir.core import ImageRequest, Overrides, Resume, WarmStart
from weir.errors import ConfigError
from weir.states import State, capture_steps

_BATCH = 16
#: An approximation is good enough if it keeps this share of the whole run's quality.
KEEPS = 0.97
#: Steps at which warm starts begin, as shares of the whole run.
WARM_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: A prompt resumes from its neighbours of these ranks among all prompts; rank 0 is the prompt itself.
RANKS = (0, 1, 4, 16, 64)

#: Called with what is generated, the number of finished images, and the number of all images.
Progress = Callable[[str, int, int], None]


class GeneratedImage(Protocol):
    """Output of an engine that the measurement uses (:class:`workers.engine.engine.EngineOutput`)."""

    image: bytes
    confidence: float | None
    error: tuple[str, str] | None
    states: tuple[State, ...]
    latent: State | None


class Engine(Protocol):
    """Generates images (:class:`workers.engine.engine.Engine`)."""

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> Sequence[Any]: ...


class Judges(Protocol):
    """Scores images (:class:`quality.suite.Suite`)."""

    def scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """By name of the judge, one number for each pair of prompt and image; higher is better."""
        ...


@dataclass(frozen=True)
class Row:
    """Quality of one way to skip steps.

    Attributes:
        step: the first step that was run.
        saved: share of the whole run's steps that were skipped.
        similarity: lower and upper bound of the similarity of the prompts; None for a warm start.
        ratio: paired quality ratio to the whole run, by judge.
        baseline: the same ratio for the heavy variant from noise with the same number of steps.
    """

    step: int
    saved: float
    similarity: tuple[float, float] | None
    ratio: dict[str, PairedRatio]
    baseline: dict[str, PairedRatio]

    def worth(self, judge: str) -> bool:
        """Whether the images are better than the baseline and good enough."""
        return self.ratio[judge].ratio > self.baseline[judge].ratio and self.ratio[judge].ratio >= KEEPS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"worth": {judge: self.worth(judge) for judge in self.ratio}}


class Approximations:
    """Measures the heavy variant of a family. Whole runs and runs with fewer steps are generated once.

    Args:
        prompts: held out from training, all different.
        embeddings: unit vectors [N, D] of the prompts, by the encoder of the cache.
        family: its first and its last variant are the light and the heavy one.
    """

    def __init__(
        self,
        engine: Engine,
        judges: Judges,
        prompts: Sequence[str],
        embeddings: np.ndarray,
        family: FamilyConfig,
        progress: Progress | None = None,
    ):
        self.prompts, self.similarities, self.steps = list(prompts), embeddings @ embeddings.T, family.heavy.steps
        self._engine, self._judges, self._progress = engine, judges, progress
        self._light, self._heavy = family.keys[0], family.keys[-1]
        self._requests = [
            ImageRequest(f"resume-{i}", prompt, i, family.size, deadline=float("inf"))
            for i, prompt in enumerate(self.prompts)
        ]
        self._all = range(len(self.prompts))
        whole = self._generate("heavy", self._heavy, [replace(r, capture="") for r in self._requests])
        self._states: list[dict[int, State]] = [{s.step: s for s in image.states} for image in whole]
        self.whole = self._judge(whole, self._all)
        self._short: dict[int, dict[str, np.ndarray]] = {}

    # ---------------------------------------------------------------------------------------------- resume

    def resume(self, bins: Sequence[float] = (0.0, 0.7, 0.8, 0.9, 0.95, 0.999, 1.001)) -> list[Row]:
        """Rows by step and, within a step, by the similarity of the prompt to the source of its state.

        A source has another seed than the prompt, as in a cache. Where a prompt is its own source, the seed is the
        same, too, and the run equals the whole run up to the rounding of float16.
        """
        pairs = self._pairs()
        similarity = np.array([self.similarities[i, j] for i, j in pairs])
        targets = [i for i, _ in pairs]
        rows = []
        for step in capture_steps(self.steps):
            requests = [replace(self._requests[i], resume=Resume("-", step)) for i in targets]
            images = self._generate(
                f"resumed at {step}", self._heavy, requests, [self._states[j][step] for _, j in pairs]
            )
            scores = self._judge(images, targets)
            for low, high in pairwise(bins):
                inside = (low <= similarity) & (similarity < high)
                if all(quality[targets][inside].sum() > 0 for quality in self.whole.values()):
                    rows.append(self._row(step, (low, high), scores, np.array(targets), inside))
        return rows

    def _pairs(self) -> list[tuple[int, int]]:
        """(prompt, source) for every prompt and rank, from the prompt itself to dissimilar prompts."""
        order = np.argsort(-self.similarities, axis=1, kind="stable")
        return [(i, int(order[i, rank])) for rank in RANKS if rank < len(order) for i in self._all]

    # ------------------------------------------------------------------------------------------ warm start

    def warm_start(self, threshold: float) -> list[Row]:
        """Rows by step, over the prompts whose light image the threshold defers; empty if it defers none."""
        light = self._generate("light", self._light, [replace(r, keep_latent=True) for r in self._requests])
        deferred = [i for i in self._all if (light[i].confidence or 0.0) < threshold]
        rows = []
        for share in WARM_SHARES if deferred else ():
            step = round(share * self.steps)
            requests = [
                replace(self._requests[i], warm_start=WarmStart(light[i].latent.to_bytes(), step)) for i in deferred
            ]
            scores = self._judge(self._generate(f"warm at {step}", self._heavy, requests), deferred)
            inside = np.ones(len(deferred), bool)
            rows.append(self._row(step, None, scores, np.array(deferred), inside))
        return rows

    # ----------------------------------------------------------------------------------------- generation

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
        """Scores of all prompts with ``steps`` steps from noise."""
        if steps not in self._short:
            requests = [replace(r, overrides=Overrides(steps=steps)) for r in self._requests]
            images = self._generate(f"heavy, {steps} steps", self._heavy, requests)
            self._short[steps] = self._judge(images, self._all)
        return self._short[steps]

    def _generate(
        self, what: str, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State] = ()
    ) -> list[Any]:
        images: list[Any] = []
        for i in range(0, len(requests), _BATCH):
            images += self._engine.generate(variant, requests[i : i + _BATCH], starts[i : i + _BATCH])
            if self._progress is not None:
                self._progress(what, len(images), len(requests))
        for image in images:
            if image.error is not None:
                raise ConfigError(f"{what}: the family cannot generate an image: {image.error[1]}")
        return images

    def _judge(self, generated: Sequence[Any], targets: Sequence[int]) -> dict[str, np.ndarray]:
        images = [Image.open(io.BytesIO(it.image)).convert("RGB") for it in generated]
        return self._judges.scores([self.prompts[i] for i in targets], images)


def figures(prompts: int, resumed: Sequence[Row], warm: Sequence[Row], judge: str) -> dict[str, Any]:
    """All rows as plain data, and the best warm start by the given judge."""
    return {
        "prompts": prompts,
        "resume": [row.to_dict() for row in resumed],
        "warm_start": [row.to_dict() for row in warm],
        "warm_start_step": best_warm_start(warm, judge),
    }


def best_warm_start(rows: Sequence[Row], judge: str) -> int:
    """The step of the warm start that saves most among those that are worth it; 0 if none is."""
    return max((row.step for row in rows if row.worth(judge)), default=0)

"""Measures the cache profile of a family: generates and judges runs from noise and resumed ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from cache.cache import Judge
from cache.policy.selector import By, Selector
from cache.profiling import (
    CacheProfiling,
    EncodedLog,
    Generate,
    Measured,
    Runs,
    measure,
    measure_judged,
    thresholds,
)
from quality.suite import scored
from weir.config import FamilyConfig
from weir.core import ImageRequest, Resume
from weir.errors import ConfigError
from workers.models.family import Family

#: Called with the runs that are done, their number, and what they are.
Report = Callable[[int, int, str], None]


def measure_family(
    config: FamilyConfig,
    log: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    judge: Any,
    how: CacheProfiling,
    *,
    threads: int = 1,
    report: Report | None = None,
) -> tuple[Measured, Selector, str]:
    """Returns the measurements, the selector that follows from them, and the name of the weights.

    Args:
        log: prompts in order of submission.
        encode: unit vectors of prompts, [N, D].
        judge: rates the images (:func:`quality.suite.load_judge`).

    Raises:
        ConfigError: the stride fits no K; the log is too short; the family has no discriminator for stored features.
    """
    steps, last = config.heavy.steps, config.keys[-1]
    ks = how.steps_to_resume_at(steps)
    engine = Family.load(config, threads=threads)
    generate, discriminator = judged_runs(engine, judge, how.stride), engine.judges[last]
    if how.by is By.SIMILARITY:
        prompts = list(dict.fromkeys(log))
        found = measure(EncodedLog(prompts, encode(prompts)), ks, generate, how, progress=report)
    elif isinstance(discriminator, Judge):
        prompts = [*dict.fromkeys(log[: -how.count]), *log[-how.count :]]
        found = measure_judged(
            EncodedLog(prompts, encode(prompts)), steps, generate, discriminator.weigh, how, progress=report
        )
    else:
        raise ConfigError(f"--by confidence: family {config.name} has no discriminator for stored features")
    accept = how.accept if how.by is By.CONFIDENCE else 0.0
    return found, thresholds(found, how.alpha, steps, how.stride, accept), engine.models[last]


def judged_runs(engine: Family, judge: Any, stride: int = 1) -> Generate:
    """A function that generates and judges runs of the last variant, for :func:`cache.profiling.measure`."""
    size = engine.config.size

    def request_for(name: str, prompt: str, seed: int, state: Any) -> ImageRequest:
        request = ImageRequest(name, prompt, seed, size, float("inf"), judge=True)
        if state is None:
            return replace(request, capture="")
        return replace(request, resume=Resume("", state.step, stride))

    def generate(prompts: Sequence[str], seeds: Sequence[int], states: Sequence[Any]) -> Runs:
        requests = [request_for(f"run-{i}", *row) for i, row in enumerate(zip(prompts, seeds, states, strict=True))]
        outputs = engine.generate(engine.config.keys[-1], requests, states)
        images = [Image.open(io.BytesIO(each.image)) for each in outputs]
        return Runs(
            scored(judge, prompts, images),
            [{s.step: s for s in each.states} for each in outputs],
            [None if each.seen is None else np.frombuffer(each.seen, np.float16) for each in outputs],
            np.array([each.confidence or 0.0 for each in outputs]),
        )

    return generate

"""Checks the level head of a running service in idle time, and replaces it when it has drifted.

A thread in the controller's process requests shadow samples from the load balancer, judges them with the family's
measure, and writes a new head to the file that the configuration names. Cache and controller load it from there.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cache.encoder import family_encoder
from quality.resume import Judges
from quality.suite import family_suite
from training.level_pairs import ladder_of
from training.shadow import ShadowCheck
from weir import metrics as metrics_of
from weir.config import FamilyConfig, ServiceConfig
from weir.prompt_levels import LevelHead, WatchedHead
from weir.telemetry import Metrics

log = logging.getLogger(__name__)

#: Seconds between two requests for a sample.
PERIOD_S = 2.0
#: Default measure for fitting level heads.
JUDGE = "attributes"


class ShadowLoop:
    """Takes shadow samples one at a time and refits the level head when it has drifted. The models are loaded here.

    Args:
        sample: generates one prompt at the given variants and steps, and returns the fields of a ``ShadowSample``; or
            returns None when there is no time or no prompt now.

    Raises:
        ConfigError: the head is not valid, or the family has no measure to judge its images.
    """

    def __init__(
        self,
        service: ServiceConfig,
        family: FamilyConfig,
        sample: Callable[[Sequence[tuple[str, int]]], dict[str, Any] | None],
        metrics: Metrics,
        judges: Judges | None = None,
        judge: str = JUDGE,
    ):
        assert service.cache.levels is not None  # the configuration was checked
        torch.set_num_threads(1)
        encoder = family_encoder(family, service.cache.encoder)
        self._judges, self._judge = judges or family_suite(family), judge
        self._watched = WatchedHead(Path(service.cache.levels), encoder=encoder.version, steps=family.heavy.steps)
        self._encode = encoder.encode
        self._family, self._sample, self._metrics = family, sample, metrics
        self.check = ShadowCheck(self._watched.head, encoder.encode)

    def run(self, stop: threading.Event) -> None:
        """Runs until ``stop`` is set. A failure is logged and does not end the loop."""
        last = ""
        while not stop.wait(PERIOD_S):
            try:
                self.step()
            except Exception as error:
                if (message := f"{type(error).__name__}: {error}") != last:
                    log.warning("no shadow sample: %s", message)
                last = message

    def step(self) -> None:
        """Takes at most one sample, and publishes a new head if the samples show drift."""
        if self._watched.renewed():
            self.check = ShadowCheck(self._watched.head, self._encode)
        # Ray forgets a gauge that is not set again.
        self._metrics.set(metrics_of.LEVELS_DRIFTED, float(self.check.drifted))
        sample = self._sample(levels_of(self._watched.head, self._family))
        if sample is None:
            return
        images = [Image.open(io.BytesIO(image)).convert("RGB") for image in sample["images"]]
        scores = self._judges.scores([sample["prompt"]] * len(images), images)[self._judge]
        drifts = self.check.take(sample["prompt"], scores.tolist(), sample["confidence"])
        self._metrics.add(metrics_of.SHADOW_SAMPLES)
        if (head := self.check.refitted()) is not None:
            levels = ", ".join(f"{it.level} {it.recorded:.3f} recorded, {it.realised:.3f} now" for it in drifts)
            log.warning("level head %s has drifted (%s); replaced by %s", self.check.head.version, levels, head.version)
            head.publish(self._watched.path)
            self._metrics.add(metrics_of.LEVELS_REFITTED)


def levels_of(head: LevelHead, family: FamilyConfig) -> list[tuple[str, int]]:
    """Variant and steps of the rungs that a head was fitted on; 0 stands for the variant's own number of steps."""
    rungs = ladder_of(family, [int(name.rsplit("-", 1)[1]) for name in head.about.rungs[1:-1]])
    return [(rung.variant, rung.steps) for rung in rungs]

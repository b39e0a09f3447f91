"""Checks the level head of a running service while it is idle, and puts a new one in its place when it has drifted.

A thread beside the controller. It asks the load balancer for shadow samples, judges them as the family's images are
judged, and writes a new head to the file that the configuration names; cache and controller take it up from there.
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

#: Seconds between two looks whether there is time for a sample.
PERIOD_S = 2.0
#: The measure that level heads are fitted by unless somebody says otherwise.
JUDGE = "attributes"


class ShadowLoop:
    """Everything it needs, loaded.

    Args:
        draw: a sample at these variants and steps (fields of a ``ShadowSample``); None for now.

    Raises:
        ConfigError: the head is not what it should be, or the family brings nothing that judges its images.
    """

    def __init__(
        self,
        service: ServiceConfig,
        family: FamilyConfig,
        draw: Callable[[Sequence[tuple[str, int]]], dict[str, Any] | None],
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
        self._family, self._draw, self._metrics = family, draw, metrics
        self.check = ShadowCheck(self._watched.head, encoder.encode)

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``. Nothing that fails ends it."""
        trouble = ""
        while not stop.wait(PERIOD_S):
            try:
                self.step()
            except Exception as error:
                if (found := f"{type(error).__name__}: {error}") != trouble:
                    log.warning("no shadow sample: %s", found)
                trouble = found

    def step(self) -> None:
        """One sample, where there is time for it, and what follows from it."""
        if self._watched.renewed():
            self.check = ShadowCheck(self._watched.head, self._encode)
        # Ray forgets a gauge that is not told again.
        self._metrics.set(metrics_of.LEVELS_DRIFTED, float(self.check.drifted))
        sample = self._draw(levels_of(self._watched.head, self._family))
        if sample is None:
            return
        images = [Image.open(io.BytesIO(image)).convert("RGB") for image in sample["images"]]
        scores = self._judges.scores([sample["prompt"]] * len(images), images)[self._judge]
        drifts = self.check.take(sample["prompt"], scores.tolist(), sample["confidence"])
        self._metrics.add(metrics_of.SHADOW_SAMPLES)
        if (head := self.check.refitted()) is not None:
            told = ", ".join(f"{it.level} {it.recorded:.3f} recorded, {it.realised:.3f} now" for it in drifts)
            log.warning("level head %s has drifted (%s); fitted again: %s", self.check.head.version, told, head.version)
            head.publish(self._watched.path)
            self._metrics.add(metrics_of.LEVELS_REFITTED)


def levels_of(head: LevelHead, family: FamilyConfig) -> list[tuple[str, int]]:
    """Variant and steps of the rungs that a head was fitted on, 0 for the variant's own."""
    rungs = ladder_of(family, [int(name.rsplit("-", 1)[1]) for name in head.about.rungs[1:-1]])
    return [(rung.role.value, rung.steps) for rung in rungs]

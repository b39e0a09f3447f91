"""Current batch latencies: the profiled times, corrected by the recent batches of the workers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from controller.observation import Batch
from controller.setting import Setting
from solvers.problem import GpuType
from weir.core import LatencyProfile

#: Seconds for which a batch counts. The median follows a change of the device after half of this time.
WINDOW_S = 30.0
#: Least number of batches for a correction.
LEAST_BATCHES = 5
#: A correction is kept while the median is within this share of it, so that noise changes no plan.
TOLERANCE = 0.1
#: Range of corrections; a value outside it points to a broken clock rather than a slow device.
LEAST_FACTOR, MOST_FACTOR = 0.1, 10.0


class LiveLatency:
    """Correction factors on the profiled times by type of GPU and variant: medians of measured over profiled seconds.

    It uses a median so that one stuck batch does not change a plan. All batch sizes share one factor, because a slower
    clock or a busier host slows all of them, and few sizes are in use at a time.
    """

    def __init__(self, setting: Setting):
        self._setting = setting
        keys = [(index, variant) for index, gpu in enumerate(setting.gpus) for variant in gpu.variants]
        self._ratios: dict[tuple[int, str], deque[tuple[float, np.ndarray]]] = {key: deque() for key in keys}
        self._factors = dict.fromkeys(keys, 1.0)

    def observe(self, batches: Iterable[Batch], now_s: float) -> None:
        """Adds the batches that ended since the last call. Invalid times are ignored."""
        ended: dict[tuple[int, str], list[float]] = {key: [] for key in self._ratios}
        for batch in batches:
            key = (batch.gpu, batch.variant)
            if key in ended and batch.size >= 1 and math.isfinite(batch.seconds) and batch.seconds > 0:
                ended[key].append(batch.seconds / self._profiled(batch))
        for key, ratios in self._ratios.items():
            ratios.append((now_s, np.array(ended[key])))
            while ratios and ratios[0][0] <= now_s - WINDOW_S:
                ratios.popleft()
            recent = np.concatenate([np.empty(0), *(each for _, each in ratios)])
            if len(recent) < LEAST_BATCHES:
                continue
            seen = min(max(float(np.median(recent)), LEAST_FACTOR), MOST_FACTOR)
            if abs(seen - self._factors[key]) > TOLERANCE * self._factors[key]:
                self._factors[key] = seen

    def factor(self, variant: str, gpu: int = 0) -> float:
        """Returns the factor on the profiled times of a variant on a type of GPU; 1 before any correction."""
        return self._factors[gpu, variant]

    def gpus(self) -> tuple[GpuType, ...]:
        """Returns the types of GPU of the setting with their current times."""
        return tuple(
            replace(
                gpu,
                latencies={
                    variant: _scaled(latency, self._factors[index, variant])
                    for variant, latency in gpu.latencies.items()
                },
            )
            for index, gpu in enumerate(self._setting.gpus)
        )

    def _profiled(self, batch: Batch) -> float:
        gpu = self._setting.gpus[batch.gpu]
        judging_s = self._setting.discriminator_s if batch.variant == gpu.variants[0] else 0.0
        return gpu.latency(batch.variant).at(batch.size) + judging_s


def _scaled(profile: LatencyProfile, factor: float) -> LatencyProfile:
    if factor == 1.0:
        return profile
    return LatencyProfile(profile.batch_sizes, tuple(factor * s for s in profile.latency_s))

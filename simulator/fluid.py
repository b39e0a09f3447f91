"""Fluid bound: the quality that perfect foresight reaches without queueing."""

from __future__ import annotations

import numpy as np

from controller.batch_size import best_batch
from controller.setting import Setting

#: Length of a window, seconds; the same as in the report.
WINDOW_S = 30.0


def fluid_bound(setting: Setting, arrivals_s: np.ndarray, window_s: float = WINDOW_S) -> float:
    """Returns the mean quality over windows when every window has the best deferred share for its number of requests.

    In every window all GPUs work without idle time at their best batch size within the deadline. They are split in
    fractions, because a GPU may change its role within a window; heavy runs have the best length, and nothing queues.
    Windows without a request are left out. The result is nan without a quality curve or without a request. The setting
    has one type of GPU.
    """
    if setting.quality is None or not len(arrivals_s):
        return float("nan")
    gpu = setting.gpus[0]
    heavy_batch = best_batch(gpu.heavy, setting.slo_s - gpu.light.latency_s[0] - setting.discriminator_s)
    left = setting.slo_s - gpu.heavy.at(heavy_batch) - setting.discriminator_s
    light_batch = best_batch(gpu.light, left)
    light_rps = light_batch / (gpu.light.at(light_batch) + setting.discriminator_s)
    heavy_rps = heavy_batch / gpu.heavy.at(heavy_batch)
    counts = np.bincount((arrivals_s // window_s).astype(int))
    best = []
    for index, count in enumerate(counts):
        if not count:
            continue
        # The last window ends with the trace.
        seconds = min(window_s, max(arrivals_s[-1] - index * window_s, 1.0))
        rate = count / seconds
        light_gpus = min(gpu.count, rate / light_rps)
        rewards = []
        for work, loss in ((1.0, 0.0), *((run.work, run.loss) for run in setting.short_runs)):
            most = min(1.0, (gpu.count - light_gpus) * heavy_rps / work / rate)
            rewards += [setting.quality.reward(1 - s) - s * loss for s in np.linspace(0, most, 201)]
        best.append(max(rewards))
    return float(np.mean(best)) * (-1 if setting.quality.smaller_is_better else 1)

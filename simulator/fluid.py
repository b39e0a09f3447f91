"""What perfect foresight could reach: the bound that policies are measured against."""

from __future__ import annotations

import numpy as np

from controller.batch_size import best_batch
from controller.setting import Setting

#: Seconds of a window, as in the report.
WINDOW_S = 30.0


def fluid_bound(setting: Setting, arrivals_s: np.ndarray, window_s: float = WINDOW_S) -> float:
    """Mean quality over windows when each gets the best share that its own count of requests allows.

    In every window all GPUs work without pause at their best batch that meets the deadline, split at will (a GPU may
    change its role within a window, so fractions count), on heavy runs of the best length, and nothing queues. Windows
    without a request are left out.
    nan without a quality curve or without a request. One type of GPU.
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

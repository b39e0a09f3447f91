"""Identifies processes by their start, whatever the wall clock does."""

from __future__ import annotations

import psutil

#: Precision of start times, seconds: they are counted in ticks of 10 ms.
_TICK_S = 0.01


def started_s(pid: int) -> float:
    """Time from the boot of the machine to the start of a process, seconds.

    The unix time of the start changes when the wall clock is set, because it is computed from the time since the boot.

    Raises:
        psutil.NoSuchProcess: there is no such process.
    """
    return psutil.Process(pid).create_time() - psutil.boot_time()


def is_same(a_s: float, b_s: float) -> bool:
    """Whether two results of :func:`started_s` are the start of one process."""
    return abs(a_s - b_s) < _TICK_S / 2

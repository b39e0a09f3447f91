"""Ends a replica that is beyond hope, wherever it runs, and the process with it.

Ray asks the process to exit, and where that has stopped altogether Ray may take it for gone: the actor is dead, a new
one is wanted, and the frozen process holds the device that it needs. So it is also killed, by a task on its node.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

#: Of Serve's actors.
NAMESPACE = "serve"


def end(process: Mapping[str, Any]) -> None:
    """Nothing happens to one that is dead already. Returns before the process is gone.

    Args:
        process: ``actor`` (its name), ``node`` (id), ``pid``, and ``started`` (unix time, seconds), as a worker
            describes its own.
    """
    try:
        actor = ray.get_actor(process["actor"], NAMESPACE)
    except ValueError:
        return
    ray.kill(actor)
    there = NodeAffinitySchedulingStrategy(process["node"], soft=False)
    _kill.options(scheduling_strategy=there).remote(process["pid"], process["started"])


def kill(pid: int, started: float) -> None:
    """Kills the process of this machine that has the id and began at that time; nobody else who got the id since."""
    try:
        if psutil.Process(pid).create_time() == started:
            os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass


_kill = ray.remote(num_cpus=0, max_retries=0)(kill)

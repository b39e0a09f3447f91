"""Kills an actor of Serve that stopped answering, and its process, on whichever node it runs.

Ray asks the process to exit. When the process is frozen, Ray may mark the actor as dead and start a new one while the
frozen process still holds the device. So a task on the node of the process kills it as well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from weir.processes import is_same, started_s

#: Namespace of Serve's actors.
NAMESPACE = "serve"


def own_process() -> dict[str, Any] | None:
    """What is needed to end this process: the actor's name, its node, process id and start
    (:func:`weir.processes.started_s`); None outside a cluster."""
    if not ray.is_initialized() or (actor := ray.get_runtime_context().get_actor_name()) is None:
        return None
    pid, started = os.getpid(), started_s(os.getpid())
    return {"actor": actor, "node": ray.get_runtime_context().get_node_id(), "pid": pid, "started": started}


def end(process: Mapping[str, Any]) -> None:
    """Kills an actor and its process; does nothing if the actor is dead already. Returns before the process is gone.

    Args:
        process: as its :func:`own_process`.
    """
    try:
        actor = ray.get_actor(process["actor"], NAMESPACE)
    except ValueError:
        return
    ray.kill(actor)
    there = NodeAffinitySchedulingStrategy(process["node"], soft=False)
    _kill.options(scheduling_strategy=there).remote(process["pid"], process["started"])


def kill(pid: int, started: float) -> None:
    """Kills the process of this machine with the id, unless a later process has got the id: the start times must
    match."""
    try:
        if is_same(started_s(pid), started):
            os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass


_kill = ray.remote(num_cpus=0, max_retries=0)(kill)

"""Processor time of the processes of a service, by kind."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil


def processor_s(root: psutil.Process) -> dict[str, float]:
    """Processor seconds of a process and its descendants, by kind, with those of children that have ended."""
    found: Counter[str] = Counter()
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times, arguments = process.cpu_times(), process.cmdline()
            used = times.user + times.system + times.children_user + times.children_system
            found[_kind(process.name(), arguments)] += used
    return dict(found)


def _kind(name: str, arguments: list[str]) -> str:
    """A process as a reader knows it: ``ray::ServeReplica:weir:Pool`` is the Pool."""
    title = " ".join(arguments)
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split()[0].removeprefix("ServeReplica:").split(".")[0]
    if "service_process" in title:
        return "service process"
    return next((Path(it).name for it in arguments[1:] if it.endswith(".py")), name)

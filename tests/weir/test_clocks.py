"""Elapsed time is measured by a monotonic clock: a wall clock that is set must not change a quota or a lifetime."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from weir.processes import is_same, started_s

ROOMS = ("cache", "controller", "deploy", "load_balancer", "solvers", "weir", "workers")
#: Uses of the wall clock, by file: all of them are for people, or for other hosts.
WALL_CLOCK = {
    "cache/cache.py": ("when an entry was made",),
    "controller/loop.py": ("when a plan was published",),
    "deploy/monitoring/render_dashboards.py": ("the range of a rendered dashboard",),
    "load_balancer/admin_controls.py": ("when an operator acted",),
    "load_balancer/http/api.py": ("since when the models are served",),
    "load_balancer/http/events.py": ("when an image was sent",),
    "load_balancer/http/jobs.py": ("when a request came in, and when it is removed",),
    "load_balancer/pin_control.py": ("when a pin ends", "how long one of another load balancer goes on"),
    "load_balancer/pool/serve_pool.py": ("when a replica was asked", "when it had answered"),
    "load_balancer/runner/balancer.py": ("the time of a report",),
    "load_balancer/shared/job_ledger.py": ("when a job ended, for the other load balancers",),
    "weir/clocks.py": ("the clock that those above use",),
    "workers/replica.py": ("the clock of the host, from which its skew is measured",),
}


def wall_clock_uses(source: str) -> int:
    """Number of places that read the wall clock, or pass it on."""
    spellings = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
    uses = [it for it in ast.walk(ast.parse(source)) if isinstance(it, ast.Attribute)]
    return sum(it.attr == "unix" or ast.unparse(it) in spellings for it in uses)  # weir.clocks.Clocks has it as unix


def test_the_wall_clock_is_read_for_people_and_other_hosts_only() -> None:
    files = {str(path): wall_clock_uses(path.read_text()) for room in ROOMS for path in Path(room).rglob("*.py")}
    assert {path: uses for path, uses in files.items() if uses} == {p: len(why) for p, why in WALL_CLOCK.items()}


def test_the_check_finds_the_wall_clock_however_it_is_passed_on() -> None:
    assert wall_clock_uses("def f(clock=time.time): ...\nnow = time.time()\nlater = datetime.datetime.now()") == 3
    assert wall_clock_uses("self._clock = clocks.monotonic\nself._unix_time = clocks.unix") == 1


def test_a_process_keeps_its_start_when_the_wall_clock_is_set(monkeypatch) -> None:
    import psutil

    before, created, booted = started_s(os.getpid()), psutil.Process.create_time, psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: booted - 3600.0)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) - 3600.0)
    assert is_same(started_s(os.getpid()), before)

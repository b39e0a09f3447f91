"""Ports are chosen for processes that start later."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from weir import ports
from weir.ports import free_port


def test_a_free_port_is_below_the_ephemeral_range_and_can_be_listened_on() -> None:
    port = free_port()
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not first <= port <= last
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)) as client:
        assert server.getsockname()[1] == port != client.getsockname()[1]


def test_a_port_that_is_in_use_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(ports, "_FIRST", port)
    monkeypatch.setattr(ports, "_RANGE", Path("/nowhere"))
    monkeypatch.setattr(ports, "_EPHEMERAL", port + 2)
    with socket.create_server(("127.0.0.1", port)):
        assert port not in {free_port() for _ in range(20)}


def test_the_kernel_chooses_if_no_port_is_below_the_ephemeral_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST", 70_000)
    assert free_port() > 0


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")

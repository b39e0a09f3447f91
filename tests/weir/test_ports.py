"""A port that is chosen for a process that is still to be started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from weir import ports
from weir.ports import free_port


def test_it_can_be_listened_on_and_no_outgoing_connection_gets_it() -> None:
    port = free_port()
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not first <= port <= last
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)) as client:
        assert server.getsockname()[1] == port != client.getsockname()[1]


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(ports, "_FIRST", port)
    monkeypatch.setattr(ports, "_RANGE", Path("/nowhere"))
    monkeypatch.setattr(ports, "_EPHEMERAL", port + 2)
    with socket.create_server(("127.0.0.1", port)):
        assert port not in {free_port() for _ in range(20)}


def test_where_no_port_lies_below_the_range_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST", 70_000)
    assert free_port() > 0


def test_an_address_that_is_not_of_this_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")

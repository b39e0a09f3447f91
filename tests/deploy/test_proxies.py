"""Tests of proxies: calls to Weir's own servers bypass the proxy of the environment, and other calls use it."""

from __future__ import annotations

import gc
import http.server
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from huggingface_hub import HfApi, close_session
from typer.testing import CliRunner

from cli.main import app
from deploy.local import readiness
from deploy.monitoring.prometheus import Api
from deploy.publish import Publisher
from deploy.state import Service, StateFile
from traces.replay import ReplaySettings, replay
from traces.trace import Arrival, Trace
from weir.errors import NotReady
from weir.ports import free_port
from weir.proxies import spare_loopback

VARIABLES = [name for it in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (it, it.upper())]
#: Address at which no process listens.
DEAD = "127.0.0.1:9"
PROXIES: dict[str, dict[str, str]] = {
    "http": {"http_proxy": f"http://{DEAD}", "HTTP_PROXY": f"http://{DEAD}"},
    "https": {"https_proxy": f"http://{DEAD}", "HTTPS_PROXY": f"http://{DEAD}"},
    "all, SOCKS 5": {"ALL_PROXY": f"socks5://{DEAD}"},
    "all, SOCKS 5 with names resolved there": {"all_proxy": f"socks5h://{DEAD}"},
    "all, with an unknown scheme": {"ALL_PROXY": f"gopher://{DEAD}", "http_proxy": f"gopher://{DEAD}"},
}


@pytest.fixture(params=PROXIES)
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets an environment with a proxy and without exemptions."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in PROXIES[request.param].items():
        monkeypatch.setenv(name, value)


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers the requests to a load balancer, to the dashboard of Ray and to Prometheus."""

    ANSWERS: ClassVar[dict[str, bytes]] = {
        "/readyz": b'{"ready": true, "pending": []}',
        "/api/version": b'{"version": "4", "ray_version": "2.60.0"}',
        "/api/ray/version": b'{"version": "4", "ray_version": "2.60.0"}',
        "/api/serve/applications/": b'{"applications": {}}',
        "/api/v1/query": b'{"status": "success", "data": {"result": []}}',
    }

    def do_GET(self) -> None:
        body = self.ANSWERS.get(self.path.partition("?")[0], b"{}")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_calls_to_the_load_balancer_bypass_the_proxy(proxied: None, url: str) -> None:
    assert readiness(url) == {"ready": True, "pending": []}


def test_the_status_of_a_service_bypasses_the_proxy(
    proxied: None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = StateFile("tiny", Path(".weir"))
    state.acquire()
    try:
        state.write(Service("tiny", os.getpid(), url, url, "tiny.yaml", True))
        done = CliRunner().invoke(app, ["status"])
    finally:
        state.release()
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.output


def test_calls_to_the_ray_dashboard_bypass_the_proxy(proxied: None, url: str) -> None:
    assert Publisher(url, timeout_s=60).details()["applications"] == {}


def test_calls_to_prometheus_bypass_the_proxy(proxied: None, url: str) -> None:
    assert Api(url).query("up") == []


def test_a_replay_bypasses_the_proxy(proxied: None, url: str, tmp_path: Path) -> None:
    done = replay(Trace.of([Arrival(0, "a red circle", None)]), url, tmp_path, ReplaySettings(5))
    assert [outcome.status for outcome in done.outcomes] == [200]


def test_the_error_of_a_missing_dashboard_names_its_address(proxied: None) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(NotReady, match=re.escape(dead)) as caught:
        Publisher(dead, timeout_s=60)
    assert DEAD not in caught.value.message


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """A port that records the first bytes of each connection and closes it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(60)
                    heard.append(connection.recv(64))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield server.getsockname()[1], heard
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    ("name", "scheme", "begins"),
    [
        ("https_proxy", "http", b"CONNECT huggingface.co:443"),
        ("ALL_PROXY", "socks5", b"\x05"),
        ("all_proxy", "socks5h", b"\x05"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket of the hub's client
def test_downloads_from_the_hub_use_the_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str, scheme: str, begins: bytes
) -> None:
    for it in VARIABLES:
        monkeypatch.delenv(it, raising=False)
    with listening() as (port, heard):
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{port}")
        close_session()  # the hub's client keeps what the environment said when it was made
        try:
            with suppress(Exception):  # nothing answers behind the proxy
                HfApi(endpoint="https://huggingface.co").model_info("somebody/something", timeout=60)
        finally:
            close_session()
            gc.collect()
        until = time.monotonic() + 60
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
    assert heard
    assert heard[0].startswith(begins)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "intra.example.com, 10.0.0.0/8"}, "intra.example.com,10.0.0.0/8,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "localhost"}, "localhost,127.0.0.1,::1"),
    ],
)
def test_child_processes_exempt_this_machine_from_the_proxy(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, before.get(name, ""))
    spare_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after


#: Calls of HTTP clients that use the proxy of the environment unless ``trust_env`` is false.
_CALLS = re.compile(
    r"\bhttpx\.(?:get|post|Client|AsyncClient)\(|\burlopen\(|\brequests\.(?:get|post|put|request|Session)\("
)


def test_every_call_in_the_code_states_whether_it_uses_the_proxy() -> None:
    found = []
    for room in ("cli", "deploy", "traces", "testing", "load_balancer", "controller", "cache", "weir", "benchmarks"):
        for path in Path(room).rglob("*.py"):
            text = path.read_text()
            for call in _CALLS.finditer(text):
                depth, end = 1, call.end()
                while depth:
                    depth += {"(": 1, ")": -1}.get(text[end], 0)
                    end += 1
                if "trust_env=False" not in text[call.start() : end]:
                    found.append(f"{path}: {text[call.start() : call.end()]}")
    assert found == []

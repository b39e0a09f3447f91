"""The front door of several load balancers: Ray Serve's HAProxy with stricter rules, on a real HAProxy."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import httpx
import psutil
import pytest

from deploy.haproxy import BUFFER_BYTES, UnknownConfiguration, environment, hardened
from weir.http_limits import CONTROL_HEADERS, MOST_HEAD_BYTES
from weir.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
#: Writes what Ray Serve would have HAProxy read, for load balancers at these ports.
_WRITE = """
import asyncio, sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

port, *backends = map(int, sys.argv[1:])
servers = [ServerConfig(name=f"b{it}", host="127.0.0.1", port=it) for it in backends]
backends = {"weir": BackendConfig(name="weir", app_name="weir", path_prefix="/", servers=servers)} if servers else {}
config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port), metrics_enabled=False, is_head=True)
config.has_received_routes = config.has_received_servers = True
api = HAProxyApi(config, backends)
asyncio.run(asyncio.to_thread(lambda: None))
result = api._generate_config_file_internal()
if asyncio.iscoroutine(result):
    asyncio.run(result)
"""


class LoadBalancer(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that it gets. Asked for /die by a request for the first time, or for /dead, it ends the
    connection without an answer."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        name = self.headers.get("x-request-id", "")
        if self.path == "/dead" or (self.path == "/die" and name not in self.asked):
            self.asked.add(name)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        answer = json.dumps({"headers": dict(self.headers), "body": body.decode(), "server": self.server.server_port})
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # HAProxy leaves connections when it ends


@contextmanager
def front_door(folder: Path, backends: list[int]) -> Iterator[str]:
    """The address of a front door before load balancers at these ports."""
    port = free_port()
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    given |= environment(folder / "d", (free_port(), free_port()), 30.0)
    ports = [str(it) for it in (port, *backends)]
    subprocess.run([sys.executable, "-W", "ignore", "-c", _WRITE, *ports], env=given, check=True)
    program, config = given["RAY_SERVE_HAPROXY_BINARY_PATH"], given["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]
    log = folder / "log"
    with log.open("w") as out:
        proxy = subprocess.Popen([program, "-db", "-f", config], env=given, stderr=out)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/-/healthz", timeout=5).raise_for_status()
            break
        except httpx.HTTPError:
            assert time.monotonic() < end
            assert proxy.poll() is None, log.read_text()
            time.sleep(0.1)
    yield url
    proxy.terminate()
    proxy.wait()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a front door before two load balancers."""
    servers = [Server(("127.0.0.1", 0), LoadBalancer) for _ in range(2)]
    for it in servers:
        threading.Thread(target=it.serve_forever, daemon=True).start()
    with front_door(tmp_path_factory.mktemp("door"), [it.server_port for it in servers]) as url:
        yield url
    for it in servers:
        it.shutdown()
        it.server_close()


def test_without_a_load_balancer_the_front_door_says_that_it_is_not_ready(tmp_path):
    with front_door(tmp_path, []) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a red circle"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"
    assert answer.headers["retry-after"] == "2"


def test_a_request_whose_load_balancer_dies_is_answered_by_another_one(door):
    for number in range(5):
        headers = {"x-request-id": f"r{number}"}
        answer = httpx.post(f"{door}/die", content=b"a prompt", headers=headers, timeout=30)
        assert answer.status_code == 200
        assert answer.json()["body"] == "a prompt"
        assert answer.json()["headers"]["x-request-id"] == f"r{number}"


def test_a_request_on_a_kept_connection_that_every_load_balancer_drops_is_refused_with_a_reason(door):
    with httpx.Client(base_url=door, timeout=30) as client:
        for _ in range(5):
            assert client.get("/").status_code == 200
            refusal = client.post("/dead", content=b"a prompt")
            assert refusal.status_code == 503
            assert refusal.json()["error"]["code"] == "not_ready"
            assert refusal.headers["retry-after"] == "2"


def test_serve_finds_its_haproxy_by_the_path_of_its_configuration_which_is_hardened_once(tmp_path):
    with front_door(tmp_path, []):
        [proxy] = [it for it in psutil.Process().children(recursive=True) if str(tmp_path) in " ".join(it.cmdline())]
        config = tmp_path / "d" / "haproxy.cfg"
        assert proxy.name() == "haproxy"
        assert str(config) in proxy.cmdline()
        once = config.read_text()
        program = [str(tmp_path / "d" / "haproxy"), "-c", "-f", str(config)]
        assert subprocess.run(program, capture_output=True, check=False).returncode == 0
        assert config.read_text() == once


def test_a_body_larger_than_the_buffer_passes(door):
    body = "a" * (64 * BUFFER_BYTES)
    assert httpx.post(f"{door}/", content=body, timeout=60).json()["body"] == body


def test_control_headers_of_clients_do_not_reach_serve(door):
    spellings = (*CONTROL_HEADERS, "serve_multiplexed_model_id", "X_Session_Id")
    answer = httpx.get(door, headers={name: "0.001" for name in spellings} | {"x-other": "1", "traceparent": "00-a"})
    seen = {name.lower().replace("_", "-") for name in answer.json()["headers"]}
    assert {"x-other", "traceparent"} <= seen
    assert not seen & set(CONTROL_HEADERS)


def test_what_serve_would_fail_at_does_not_reach_it(door):
    answer = httpx.get(door, headers=[(b"x-request-id", b"\xff"), (b"traceparent", b"\xff"), (b"x-other", b"1")])
    seen = {name.lower() for name in answer.json()["headers"]}
    assert "x-other" in seen
    assert not seen & {"x-request-id", "traceparent"}


def test_headers_that_are_too_large_are_refused_in_the_shape_of_the_api(door):
    answer = httpx.get(door, headers={f"x-{n}": "v" * 1000 for n in range(MOST_HEAD_BYTES // 1000)})
    assert answer.status_code == 431
    assert answer.json()["error"]["code"] == "headers_too_large"


def test_a_header_without_end_is_refused_when_the_buffer_is_full(door):
    url = httpx.URL(door)
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"x-endless: " + b"v" * 300_000)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/-/routes", "/-/Routes", "/-/anything"])
def test_serves_own_paths_are_closed(door, path):
    answer = httpx.get(f"{door}{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_clusters_may_ask_for_the_health_of_the_front_door(door):
    assert httpx.get(f"{door}/-/healthz").status_code == 200


def test_nothing_listens_beyond_this_machine_but_the_api():
    text = "global\n    stats socket /x mode 666 level admin\nfrontend prometheus\n    bind :9101\n"
    text += "frontend http_frontend\n    bind *:8000\n    errorfile 503 /tmp/500.http\nlisten stats\n  bind *:8404\n"
    text += "backend default_backend\n    http-request return status 404\n"
    binds = re.findall(r"bind (\S+)", hardened(text, "/e"))
    assert binds == ["127.0.0.1:9101", "*:8000", "127.0.0.1:8404"]
    assert "mode 600" in hardened(text, "/e")


def test_a_configuration_of_another_version_is_not_taken_for_a_safe_one():
    with pytest.raises(UnknownConfiguration, match="stats socket"):
        hardened("global\n", "/e")

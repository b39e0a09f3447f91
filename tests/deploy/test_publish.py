"""A configuration is sent in one PUT; a plan is applied when all replicas run it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from deploy.publish import Publisher, is_applied
from weir.errors import NotReady
from weir.plan import Plan


def plan(version: int = 1) -> Plan:
    return Plan.split(version, 1, 2, light_batch=4, heavy_batch=2, threshold=0.5)


def details(**more: Any) -> dict[str, Any]:
    pool = {
        "message": "",
        "replicas": [{"state": "RUNNING"}] * 3,
        "deployment_config": {"user_config": plan().to_dict()},
    }
    return {"applications": {"weir": {"status": "RUNNING", "message": "", "deployments": {"Pool": pool}, **more}}}


def test_a_plan_is_applied_when_the_application_runs_it_on_all_replicas():
    assert is_applied(details(), plan())


def test_a_plan_is_applied_when_a_newer_plan_has_replaced_it():
    newer = deepcopy(details())
    newer["applications"]["weir"]["deployments"]["Pool"]["deployment_config"]["user_config"] = plan(version=2).to_dict()
    assert is_applied(newer, plan())


def test_a_plan_is_not_applied_while_the_deployment_is_in_progress():
    assert not is_applied({}, plan())
    assert not is_applied(details(status="DEPLOYING"), plan())
    assert not is_applied(details(), plan(version=2))
    starting = deepcopy(details())
    starting["applications"]["weir"]["deployments"]["Pool"]["replicas"][0]["state"] = "STARTING"
    assert not is_applied(starting, plan())


def test_a_failed_deployment_raises_an_error_with_its_message():
    with pytest.raises(NotReady, match="no such model"):
        is_applied(details(status="DEPLOY_FAILED", message="no such model"), plan())


@pytest.fixture
def dashboard() -> Iterator[Callable[[], str]]:
    """Starts a dashboard that accepts connections and refuses every configuration with Ray's kind of error."""
    servers = []

    class Refusing(BaseHTTPRequestHandler):
        def answer(self, status: int, body: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self) -> None:
            self.answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(
                500, {"result": False, "msg": "Traceback (most recent call last):\n  ...\nValueError: no room\n"}
            )

        def log_message(self, *_: Any) -> None: ...

    def start() -> str:
        servers.append(HTTPServer(("127.0.0.1", 0), Refusing))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_refused_configuration_raises_not_ready_with_the_reason(dashboard):
    with pytest.raises(NotReady, match="did not accept the configuration: ValueError: no room; "):
        Publisher(dashboard()).put({})


def test_a_call_to_a_hanging_dashboard_times_out():
    with socket.socket() as hanging:  # accepts connections and never answers
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        with pytest.raises(NotReady, match=r"did not connect: .*timed out"):
            Publisher(f"http://127.0.0.1:{hanging.getsockname()[1]}", timeout_s=0.2)


def test_a_missing_dashboard_raises_not_ready():
    with pytest.raises(NotReady, match=r"dashboard at http://127\.0\.0\.1:9 did not connect"):
        Publisher("http://127.0.0.1:9")

"""``weir status`` shows the state of a service to people in 80 columns, and as JSON."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.main import app
from deploy.state import Service, StateFile
from deploy.status import described, status

READY = {
    "ready": True,
    "pending": [],
    "replicas": {"light": {"planned": 3, "ready": 2}, "heavy": {"planned": 1, "ready": 1}},
    "plan": {"version": 3, "age_s": 12.34, "threshold": 0.625},
    "in_flight": 4,
}
LIVE = {
    "reason": "the demand of 12.5 images/s needs three light replicas, and the quality of the rest falls least there",
    "policy": "all-heavy",
    "pinned_until": None,
    "drained": 0,
    "in_flight": 4,
    "queued": {"light": 2, "heavy": 0},
    "arrivals": 130,
    "cache": True,
    "looked_up": 120,
    "hits": 30,
    "demand_rps": 12.5,
    "answered": 120,
    "late": 2,
    "refused": 5,
    "failed": 1,
}


CONTROLS = {
    "plan": {},
    "policy": "all-heavy",
    "pin": {"reason": "pinned by ops: a look", "until": 1e9, "left_s": 540.2, "thresholds": {"light": 0.4}},
    "replicas": [
        {
            "id": "k3v9x2ab",
            "rank": 0,
            "role": "light",
            "state": "serving",
            "in_flight": 2,
            "pid": 7,
            "clock_skew_s": -3.21,
        },
        {"id": "b2c4d6e8", "rank": 3, "role": "heavy", "state": "drained", "in_flight": 1, "node": None, "pid": 8},
    ],
    "adapters": {"noir": {"reference": "/weights/noir.safetensors", "revision": None, "file": None}},
    "actions": [{"at": 1e9, "who": "ops", "action": "drain", "what": "b2c4d6e8", "until": None}],
}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    """The folder of a service whose load balancer needs the key ``secret`` for counts, and ``root`` for controls."""

    class Balancer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer, scopes = {
                "/readyz": (READY, [None, "Bearer secret", "Bearer root"]),
                "/v1/live": (LIVE, ["Bearer secret", "Bearer root"]),
                "/v1/admin/plan": (CONTROLS, ["Bearer root"]),
            }[self.path]
            known = self.headers["authorization"] in scopes
            refused = {"error": {"message": "this key may not"}}
            body = json.dumps(answer if known else refused).encode()
            self.send_response(200 if known else 403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Balancer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state = StateFile("toy", tmp_path / ".weir")
    state.acquire()
    url, logs = f"http://127.0.0.1:{server.server_port}", str(tmp_path / ".weir/logs/toy")
    state.write(Service("toy", os.getpid(), url, "http://127.0.0.1:8265", "a/toy.yaml", True, policy="weir", logs=logs))
    yield tmp_path / ".weir"
    state.release()
    server.shutdown()
    server.server_close()


def shown(state: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(described(state))
    return text.getvalue()


def test_people_see_replicas_plan_policy_demand_late_cache_and_logs_in_80_columns(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = shown(status(folder=service, key="secret"))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["light", "3", "2", "1", "2"] in rows  # planned, ready, not ready, queued
    assert ["heavy", "1", "1", "0", "0"] in rows
    words = " ".join(text.split())
    for part in (
        "toy is ready at http://127.0.0.1:",
        "plan version 3 for 12 s, threshold 0.625",
        "reason the demand of 12.5 images/s needs",
        "policy all-heavy",
        "demand 12.50 images/s in the last minute, 130 since the start, 4 in flight",
        "late 2 of 120 answered images; 5 refused, 1 failed",
        "cache 30 of 120 lookups hit (25%)",
        "logs .weir/logs/toy",
    ):
        assert part in words


def test_an_administrator_sees_the_pin_the_drained_replicas_and_who_did_it(service):
    text = shown(status(folder=service, key="root"))
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "pin thresholds light 0.4 for 540 s more, pinned by ops: a look" in words
    assert "drained b2c4d6e8 of rank 3, 1 images in flight" in words
    assert "ops: drain, b2c4d6e8" in words
    assert "clock the host of k3v9x2ab is 3.2 s behind the load balancer" in words


def test_other_clients_see_that_there_is_a_pin_and_how_many_replicas_are_drained(service, monkeypatch):
    monkeypatch.setitem(LIVE, "pinned_until", 1e9)
    monkeypatch.setitem(LIVE, "drained", 2)
    state = status(folder=service, key="secret")
    assert state["admin"] is None
    words = " ".join(shown(state).split())
    assert "pin until " in words
    assert "drained 2 replicas" in words


def test_without_the_key_the_counts_are_missing_and_the_rest_is_there(service):
    state = status(folder=service)
    assert state["live"] is None
    assert "needs the key of a client in WEIR_API_KEY" in " ".join(shown(state).split())
    assert "threshold 0.625" in shown(state)


def test_the_command_prints_a_table_or_json_on_standard_output(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_API_KEY", "secret")
    table = CliRunner().invoke(app, ["status"], env={"COLUMNS": "80"})
    assert (table.exit_code, table.stderr) == (0, "")
    assert "demand  12.50 images/s" in table.stdout
    printed = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert (printed["live"], printed["policy"], printed["replicas"]) == (LIVE, "weir", READY["replicas"])


def test_a_service_that_does_not_answer_is_shown_with_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = StateFile("toy", tmp_path / ".weir")
    state.acquire()
    state.write(Service("toy", os.getpid(), "http://127.0.0.1:9", "", "toy.yaml", True, policy="static"))
    done = CliRunner().invoke(app, ["status"])
    state.release()
    assert done.exit_code == 1
    assert "toy is not ready at http://127.0.0.1:9" in done.stdout
    assert "pending  the load balancer does not answer" in done.stdout

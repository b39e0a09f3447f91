"""Tests of a whole service with a cache: Serve, emulated workers, its own Redis, a real Prometheus, and traces.

Prompts are encoded by processes of their own: losing one of them, the cache or Redis costs hits only.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from rich.console import Console

from deploy.local import down, status, up
from deploy.logs import LogFolder, logs_of
from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.prometheus import Prometheus
from deploy.state import Service, StateFile
from testing.collector import Collector, ReceivedSpan
from tests.deploy.conftest import toy_service
from traces.loader import load_trace
from traces.replay import ReplaySettings, replay
from weir.errors import ServiceError
from weir.tracing import ENDPOINT

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]
#: Of the rates in panels; Prometheus scrapes every second here.
RATE_INTERVAL = "15s"
REPEATED = "a red circle left of a blue star"


class Watched(NamedTuple):
    state: StateFile
    service: Service
    prometheus: Prometheus
    collector: Collector

    def ask(self, prompt: str = REPEATED, **more: Any) -> dict[str, Any]:
        body = {"prompt": prompt, "model": "toy/heavy", "seed": 1, **more}
        answer = httpx.post(f"{self.service.url}/v1/images/generations", json=body, timeout=240)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["weir"]

    def hits(self) -> bool:
        """Asks for the repeated prompt; whether it resumed."""
        return bool(self.ask()["path"] == "cache")

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        found = []
        for process in psutil.Process(self.service.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if f"ray::ServeReplica:weir:{deployment}" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    config = toy_service(
        folder,
        # A laptop under tests stalls longer than a server: what is tested is the path, not the time limits.
        cache={"mode": "read-write", "encoder": "words", "encoder_replicas": 2, "fetch_s": 0.5, "lookup_s": 5},
        slo_s=120,
    )
    states = folder / "state"
    with ExitStack() as ending:
        collector = ending.enter_context(Collector())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WEIR_LOG_FORMAT", "json")
            patch.setenv("RAY_metrics_report_interval_ms", "2000")
            patch.setenv(ENDPOINT, collector.url)
            assert up(config, detach=True, folder=states)
        state = StateFile("toy", states)
        service = state.read()
        assert service
        # The last test ends the service.
        ending.callback(lambda: down(folder=states) if state.path.exists() else None)
        wait_for(state.targets.exists)
        often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        prometheus = Prometheus.start(state.targets, folder / "prometheus", overrides=often)
        ending.callback(prometheus.stop)
        yield Watched(state, service, prometheus, collector)


def wait_for(condition: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_service_that_is_up_reports_its_state_and_refuses_a_second_start(watched: Watched) -> None:
    folder = watched.state.path.parent
    now: dict[str, Any] = {}

    def follows_the_controller() -> bool:  # the configured plan is the first one; its controller makes the next
        now.update(status(folder=folder))
        return not now["pending"] and now["plan"]["version"] > 1

    wait_for(follows_the_controller)
    assert now["healthy"]
    assert now["replicas"] == {role: {"planned": 1, "ready": 1} for role in ("light", "heavy")}
    assert now["logs"] == str(folder / "logs" / "toy")
    with pytest.raises(ServiceError, match="already up"):
        up(watched.service.config, folder=folder)


def test_a_repeated_prompt_resumes(watched: Watched) -> None:
    assert watched.service.cache_url.startswith("redis://")
    assert watched.state.path.stat().st_mode & 0o077 == 0, "the file holds a secret"
    first = watched.ask()
    assert first["path"] == "heavy"
    again: dict[str, Any] = {}

    def resumed() -> bool:
        again.update(watched.ask())
        return again["path"] == "cache"

    wait_for(resumed)
    assert again["cache"]["k"] == 25
    assert again["cache"]["similarity"] == pytest.approx(1, abs=1e-3)
    assert again["cache"]["id"] != again["id"]
    assert again["steps"] == 25
    other = watched.ask("nothing alike whatsoever")
    assert (other["path"], other["cache"]["k"]) == ("heavy", 0)
    assert watched.ask(cache="off")["cache"] is None
    assert [len(watched.replicas(name)) for name in ("Encoder", "Cache")] == [2, 1]


def test_a_request_is_followed_through_load_balancer_cache_and_worker(watched: Watched) -> None:
    url, body = f"{watched.service.url}/v1/images/generations", {"prompt": "a blue star", "model": "toy/heavy"}
    answer = httpx.post(url, json=body, headers={"x-request-id": "mine"}, timeout=240)
    assert answer.json()["data"][0]["weir"]["id"] == "mine"
    records: list[dict[str, Any]] = []

    def complete() -> bool:  # the cache is told the end after the answer
        files = LogFolder(logs_of("toy", watched.state.path.parent))
        records[:] = [json.loads(entry.text) for entry in files.read("mine")]
        return [it["component"] for it in records].count("cache") == 2

    wait_for(complete)
    assert {record["request_id"] for record in records} == {"mine"}
    components = [record["component"] for record in records]
    assert (components[0], set(components)) == ("cache", {"cache", "worker", "load-balancer"})
    assert any(record["message"].startswith("answered after ") for record in records)


def test_a_request_is_one_trace_through_load_balancer_encoder_and_worker(watched: Watched) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    url, body = f"{watched.service.url}/v1/images/generations", {"prompt": "a blue star", "output_format": "jpeg"}
    headers = {"x-request-id": "traced", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert httpx.post(url, json=body, headers=headers, timeout=240).status_code == 200
    named = ["POST /v1/images/generations", "admission", "image", "cache lookup", "lookup", "run", "generate", "encode"]

    def mine() -> list[ReceivedSpan]:
        return [it for it in watched.collector.spans if it.trace_id == trace]

    wait_for(lambda: {it.name for it in mine()} >= set(named))
    spans = {it.name: it for it in mine()}
    assert {it.attributes["weir.request_id"] for it in spans.values()} == {"traced"}
    assert {spans[name].service for name in ("image", "encode", "run")} == {"weir-load-balancer"}
    assert (spans["lookup"].service, spans["generate"].service) == ("weir-cache-encoder", "weir-worker")
    assert spans["lookup"].parent_id == spans["cache lookup"].span_id
    calls = {it.span_id for it in mine() if it.name == "run"}
    assert {it.parent_id for it in mine() if it.name == "generate"} == calls
    plans = [it for it in watched.collector.spans if it.name == "plan"]
    assert {it.service for it in plans} == {"weir-controller"}
    assert spans["image"].attributes["weir.plan_version"] in {it.attributes["weir.plan_version"] for it in plans}


def test_every_panel_has_data_after_a_bursty_replay(watched: Watched, tmp_path: Path) -> None:
    assert status(folder=watched.state.path.parent)["targets"] == str(watched.state.targets)
    trace = load_trace("traces/bursty.csv").clip(50).scale_speed(5)
    quiet = Console(quiet=True)
    done = replay(trace, watched.service.url, tmp_path, ReplaySettings(10, keep_images=False), console=quiet)
    assert len(done.outcomes) == done.planned > 100
    asked = {
        (dashboard["title"], panel["title"], target["expr"].replace("$__rate_interval", RATE_INTERVAL))
        for dashboard in (make() for make in DASHBOARDS)
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    prometheus, end = watched.prometheus, time.monotonic() + 240
    while empty := {query for query in asked if not prometheus.query(query[2])}:  # Ray reports in intervals
        assert time.monotonic() < end, sorted(empty)
        time.sleep(0.5)
    assert set(prometheus.targets().values()) == {"up"}
    assert len(prometheus.targets()) == 3, "the node's agent, the autoscaler, the dashboard"
    assert {name: rule["lastError"] for name, rule in prometheus.rules().items() if rule["health"] != "ok"} == {}
    [counted] = prometheus.query("sum(ray_weir_images_asked_total)")
    assert float(counted["value"][1]) >= done.planned


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_requests_are_answered_and_hit_again_while_one_encoder_is_lost(watched: Watched, harm: int) -> None:
    wait_for(watched.hits)
    [victim, other] = watched.replicas("Encoder")
    victim.send_signal(harm)
    wait_for(lambda: all([watched.hits() for _ in range(5)]))  # every one of them is answered
    wait_for(lambda: len(watched.replicas("Encoder")) == 2 and victim not in watched.replicas("Encoder"))
    assert other.is_running()
    wait_for(watched.hits)


def test_requests_are_answered_while_the_cache_is_lost_and_its_successor_has_the_entries(watched: Watched) -> None:
    wait_for(watched.hits)
    [victim] = watched.replicas("Cache")
    before = watched.ask()["cache"]["id"]
    victim.kill()
    wait_for(lambda: watched.ask() and watched.replicas("Cache") not in ([], [victim]))
    wait_for(watched.hits)
    assert watched.ask()["cache"]["id"] == before, "the index was read from the store"
    assert len(watched.replicas("Encoder")) == 2


def test_a_redis_that_dies_is_started_again_and_every_request_meanwhile_is_answered(watched: Watched) -> None:
    def servers() -> list[psutil.Process]:
        names = ("redis-server", "valkey-server")
        return [p for p in psutil.process_iter(["name"]) if p.name() in names and _is_ours(p, watched.service)]

    [server] = servers()
    server.send_signal(signal.SIGKILL)
    wait_for(lambda: watched.ask("a blue star")["path"] in ("heavy", "cache") and servers() not in ([], [server]))
    wait_for(watched.hits)
    assert "Redis ended, and was started again" in (watched.state.path.parent / "toy.log").read_text()


def test_down_leaves_no_process_and_only_the_logs_which_tell_what_happened_to_a_request(watched: Watched) -> None:
    id, folder = watched.ask("a red circle")["id"], watched.state.path.parent
    process = psutil.Process(watched.service.pid)
    family = [process, *process.children(recursive=True)]
    assert len(family) > 5
    down(folder=folder)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert alive == []
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "toy.log"]
    records = [json.loads(entry.text) for entry in LogFolder(logs_of("toy", folder)).read(id)]
    assert {"load-balancer", "worker"} <= {record["component"] for record in records}
    with pytest.raises(httpx.ConnectError):
        httpx.get(watched.service.url)


def _is_ours(process: psutil.Process, running: Service) -> bool:
    return process.ppid() == running.pid

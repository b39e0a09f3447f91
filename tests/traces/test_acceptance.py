"""Predicted refusals are shown before a replay, and actual ones are in the report with their reasons."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from traces.acceptance import GENERATIONS, accepted_fields, expected_refusals, service_facts
from traces.figures import Reason, Scope, summarise
from traces.trace import Arrival, Trace
from weir.config import load_family
from weir.core import ImageSize
from weir.errors import ConfigError, ServiceError
from weir.ports import free_port

with warnings.catch_warnings():  # Ray's models raise pydantic deprecation warnings at import
    warnings.simplefilter("ignore")
    from load_balancer.http.reference import document

FINE = Arrival(0, "a red circle", 7)
DESCRIPTION = document(load_family("deploy/families/weir-tiny.yaml"))
SCHEMA = DESCRIPTION["paths"][GENERATIONS]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (
            [FINE, Arrival(1, "a" * 2001, None)],
            "1 of 2 requests: a prompt longer than 2000 characters, such as 2001 char",
        ),
        (
            [FINE, Arrival(1, "a", 2**64)],
            f"1 of 2 requests: a seed outside -1 to {2**64 - 1}, such as {2**64}",
        ),
        (
            [FINE, Arrival(1, "a", 1, ImageSize(96, 64)), Arrival(1, "a", 1, ImageSize(97, 64))],
            "1 of 3 requests: a size that the service does not have, such as 97x64",
        ),
        ([FINE, Arrival(1, "\u00a0", 1)], r"1 of 2 requests: an empty prompt, such as '\\xa0'"),
    ],
)
def test_refusals_are_predicted_from_the_description(arrivals: list[Arrival], message: str) -> None:
    [line] = expected_refusals(SCHEMA, Trace.of(arrivals))
    assert re.match(message, line)


@pytest.mark.parametrize("seed", [None, 0, 2**32, 2**64 - 1])
def test_no_refusal_is_predicted_for_valid_requests(seed: int | None) -> None:
    assert expected_refusals(SCHEMA, Trace.of([FINE, Arrival(1, "a" * 2000, seed)]), "weir-tiny/light") == []


def test_a_trace_whose_requests_will_all_be_refused_is_not_sent() -> None:
    with pytest.raises(
        ConfigError, match=r"will refuse every request; nothing was sent\. 2 of 2 requests: a prompt longer"
    ):
        expected_refusals(SCHEMA, Trace.of([Arrival(0, "a" * 3000, None)] * 2))
    with pytest.raises(ConfigError, match="no model dall-e-9; it has weir-tiny, weir-tiny/light"):
        expected_refusals(SCHEMA, Trace.of([FINE]), "dall-e-9")


@pytest.mark.parametrize("fields", [{}, {"prompt": {}}, {"prompt": {"anyOf": []}}])
def test_no_refusal_is_predicted_without_limits_in_the_description(fields: dict[str, Any]) -> None:
    assert expected_refusals(fields, Trace.of([Arrival(0, "a" * 9000, 2**70)]), "any") == []


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_a_service_without_a_description_is_not_an_error(server, ending: str) -> None:
    assert accepted_fields(server.url + ending) is None


def test_a_failed_connection_is_reported_before_anything_is_sent() -> None:
    with pytest.raises(ServiceError, match=r"no server answers at http://127\.0\.0\.1:.*nothing was sent"):
        accepted_fields(f"http://127.0.0.1:{free_port()}/v1")


def replayed(tmp_path: Path, url: str, text: str, *options: str) -> Result:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    command = ["replay", str(path), "--url", url, "--out", str(tmp_path / "run"), "--no-images", *options]
    return CliRunner().invoke(app, command)


def test_a_replay_without_a_server_ends_with_a_message_and_exit_code_2(tmp_path: Path) -> None:
    result = replayed(tmp_path, f"http://127.0.0.1:{free_port()}", "arrival_s,prompt\n0,a\n600,b\n")
    assert result.exit_code == 2
    assert "no server answers at http://127.0.0.1:" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_a_replay_without_any_image_ends_with_exit_code_1(server, tmp_path: Path) -> None:
    server.behaviour = lambda number, body: (1.0, 200, server.image())
    result = replayed(tmp_path, server.url, "arrival_s,prompt\n0,a\n0.01,b\n", "--timeout", "0.2")
    assert result.exit_code == 1
    assert "answered none of 2 requests: no response within 0.2 s" in " ".join(result.output.split())


def test_a_replay_of_refused_requests_lists_the_reasons_and_ends_with_exit_code_1(server, tmp_path: Path) -> None:
    server.behaviour = lambda number, body: (0, 503, server.error("overloaded"))
    result = replayed(tmp_path, server.url, "arrival_s,prompt\n0,a\n0.01,b\n")
    assert result.exit_code == 1
    assert "no image  2 × 503 overloaded: no\n" in result.stdout
    assert f"error: {server.url} answered none of 2 requests: no\n" in result.stderr


def test_refusals_are_in_the_report_by_code_and_reason(server, tmp_path: Path) -> None:
    def refuse(number: int, body: dict[str, Any]) -> tuple[float, int, Any]:
        if body["prompt"] == "fine":
            return 0, 200, server.image()
        message = f"prompt has {len(body['prompt'])} characters; accepted: <b>1 to 1000</b>"
        kind = {"message": message, "type": "invalid_request_error", "param": "prompt", "code": "invalid_value"}
        return 0, 400, {"error": kind}

    server.behaviour = refuse
    result = replayed(tmp_path, server.url, f"arrival_s,prompt\n0,fine\n0.01,{'a' * 1500}\n0.02,{'b' * 1600}\n")
    assert result.exit_code == 0
    assert "2 × 400 invalid_value: prompt has 1500 characters" in " ".join(result.output.split())
    report = json.loads((tmp_path / "run/report.json").read_text())
    [reason] = report["reasons"]
    assert (reason["status"], reason["code"], reason["count"]) == (400, "invalid_value", 2)
    assert "2 times: prompt has 1500 characters; accepted: &lt;b&gt;" in (tmp_path / "run/report.html").read_text()


def test_reasons_are_counted_by_status_and_message(server, tmp_path: Path) -> None:
    from traces.replay import ReplaySettings, replay

    codes = {"a": 429, "b": 503, "c": 503}
    server.behaviour = lambda number, body: (0, codes[body["prompt"]], server.error("overloaded"))
    outcomes = replay(
        Trace.of([Arrival(i / 100, it, None) for i, it in enumerate("abc")]), server.url, tmp_path, ReplaySettings(5)
    )
    assert summarise(outcomes.outcomes, Scope(5)).reasons == (
        Reason(503, "overloaded", "no", 2),
        Reason(429, "overloaded", "no", 1),
    )


def test_a_service_says_what_it_is(server):
    facts = {"family": "toy", "slo_s": 15, "version": "0.1.0", "device": "a100"}
    server.live = {"service": facts, "policy": "weir"}
    assert service_facts(f"{server.url}/v1") == {**facts, "policy": "weir"}


@pytest.mark.parametrize("live", [None, {}, {"service": 3}, {"service": {"slo_s": "soon"}, "policy": "weir"}])
def test_another_server_says_nothing_of_itself(server, live):
    server.live = live
    assert service_facts(server.url) == {}

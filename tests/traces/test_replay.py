"""The replay client is open loop, records every outcome, and writes only complete lines."""

from __future__ import annotations

import csv
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from traces.outcome import COLUMNS, OutcomeFile, RequestOutcome, read_outcomes, save_outcomes
from traces.replay import ReplaySettings, replay
from traces.trace import Arrival, Trace
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.telemetry import PrometheusMetrics


def evenly(count: int, gap_s: float = 0.0) -> Trace:
    return Trace.of([Arrival(i * gap_s, f"prompt {i}", i) for i in range(count)])


@pytest.fixture
def send(server, tmp_path: Path, quiet):
    """Replays a trace against the server into a new folder."""

    def run(trace: Trace, **options):
        where = {name: options.pop(name) for name in ("metrics", "console") if name in options}
        settings = ReplaySettings(**{"slo_s": 5, **options})
        return replay(trace, server.url, tmp_path / "run", settings, **{"console": quiet, **where})

    return run


@pytest.mark.parametrize("text", ["=HYPERLINK(0)", "+1", "-a", "@a", "\ta", "\ra", "'", "''=1", "a=1", ""])
def test_no_cell_is_a_formula_to_a_spreadsheet_and_every_text_is_read_as_it_was(tmp_path: Path, text: str) -> None:
    row = outcome(prompt=text, reason=text, model=text)
    save_outcomes([row], tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        _, cells = csv.reader(file)
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert read_outcomes(tmp_path / "r.csv") == [row]


@pytest.mark.parametrize("image", ["../secret.png", "images/../../secret.png", "/etc/passwd"])
def test_a_file_of_outcomes_names_no_image_outside_of_its_folder(tmp_path: Path, image: str) -> None:
    save_outcomes([outcome(image=image)], tmp_path / "r.csv")
    with pytest.raises(ConfigError, match="line 2, column image: invalid value"):
        read_outcomes(tmp_path / "r.csv")


def test_every_request_asks_for_one_image_with_the_fields_of_the_api(server, send) -> None:
    trace = Trace.of([Arrival(0, "a red circle", 7, ImageSize(96, 64)), Arrival(0.05, "a star", None)])
    send(trace, model="tiny")
    first, second = sorted(server.bodies, key=lambda b: b["prompt"], reverse=False)
    assert first == {
        "url": "/v1/images/generations",
        "prompt": "a red circle",
        "model": "tiny",
        "n": 1,
        "seed": 7,
        "size": "96x64",
        "response_format": "b64_json",
    }
    assert {"seed", "size"}.isdisjoint(second)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_with_v1_as_in_openais_clients(server, tmp_path: Path, quiet, ending: str) -> None:
    replay(evenly(1), server.url + ending, tmp_path, ReplaySettings(5), console=quiet)
    assert server.bodies[0]["url"] == "/v1/images/generations"


def test_the_fields_of_an_image_are_recorded_with_the_image(server, send, tmp_path: Path) -> None:
    server.behaviour = lambda n, body: (
        0,
        200,
        server.image(path="light-deadline", seed=body["seed"], emulated=True),
    )
    done = send(evenly(2, 0.02))
    assert [o.index for o in done.outcomes] == [0, 1]
    one = done.outcomes[1]
    assert (one.path, one.seed, one.steps, one.plan_version) == ("light-deadline", 1, 2, 4)
    assert (one.confidence, one.queue_s, one.compute_s, one.emulated) == (0.75, 0.01, 0.02, True)
    assert one.served_s == 0.03
    assert (one.status, one.error, one.answered, one.arrival_s) == (200, "", True, 0.02)
    assert (tmp_path / "run" / one.image).read_bytes() == server.png
    assert [p.name for p in sorted((tmp_path / "run/images").iterdir())] == ["000000.png", "000001.png"]


def test_outcomes_are_recorded_as_metrics(server, send) -> None:
    refusal = (0, 503, server.error("overloaded"))
    server.behaviour = lambda n, body: refusal if body["seed"] == 1 else (0.05, 200, server.image())
    registry = CollectorRegistry()
    send(evenly(3), slo_s=0.01, metrics=PrometheusMetrics(registry))
    ended = {
        how: registry.get_sample_value("weir_replay_requests_total", {"outcome": how}) for how in ("late", "refused")
    }
    assert ended == {"late": 2, "refused": 1}
    assert registry.get_sample_value("weir_replay_latency_seconds_count") == 3


def test_recorded_outcomes_can_be_read(send) -> None:
    done = send(evenly(3))
    read = read_outcomes(done.rows)
    assert [o.prompt for o in read] == ["prompt 0", "prompt 1", "prompt 2"]
    assert [o.path for o in read] == ["light"] * 3
    assert read[0].latency_s == pytest.approx(done.outcomes[0].latency_s, abs=1e-6)


def test_images_are_not_kept_on_request(send, tmp_path: Path) -> None:
    assert send(evenly(1), keep_images=False).outcomes[0].image == ""
    assert not (tmp_path / "run/images").exists()


def test_a_slow_server_does_not_delay_arrivals(server, send) -> None:
    barrier = threading.Barrier(30)

    def answer(number: int, body: dict[str, Any]) -> tuple[float, int, Any]:
        barrier.wait(timeout=60)  # answers only after all requests have arrived
        return 0, 200, server.image()

    server.behaviour = answer
    assert all(o.answered for o in send(evenly(30, 0.01)).outcomes)


@pytest.mark.parametrize(
    ("status", "answer", "error", "refused"),
    [
        (429, {"error": {"message": "", "type": "rate_limit_error", "code": "overloaded"}}, "overloaded", True),
        (503, {"error": {"message": "", "type": "server_error", "code": "not_ready"}}, "not_ready", True),
        (
            400,
            {"error": {"message": "", "type": "invalid_request_error", "code": None}},
            "invalid_request_error",
            False,
        ),
        (500, b"Internal Server Error", "http_500", False),
        (502, {"error": "proxy"}, "http_502", False),
        (200, b"not json", "invalid_answer", False),
        (200, [], "invalid_answer", False),
        (200, {"data": []}, "invalid_answer", False),
        (200, {"data": [{"b64_json": "*"}]}, "invalid_answer", False),
        (200, {"data": [{"b64_json": "aGk=", "weir": {"path": "Up & down"}}]}, "invalid_answer", False),
    ],
)
def test_a_failure_is_recorded_and_not_retried(server, send, status, answer, error: str, refused: bool) -> None:
    server.behaviour = lambda n, body: (0, status, answer)
    (outcome,) = send(evenly(1)).outcomes
    assert (outcome.status, outcome.error, outcome.refused, outcome.answered) == (status, error, refused, False)
    assert len(server.bodies) == 1


def test_an_image_without_a_path_counts_as_answered(server, send) -> None:
    server.behaviour = lambda n, body: (0, 200, {"data": [{"b64_json": server.image()["data"][0]["b64_json"]}]})
    (outcome,) = send(evenly(1)).outcomes
    assert (outcome.answered, outcome.path, outcome.confidence) == (True, None, None)


def test_a_request_without_an_answer_fails_after_the_timeout(server, send) -> None:
    given_up = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> tuple[float, int, Any]:
        if body["prompt"] == "prompt 0":
            given_up.wait(timeout=60)
        return 0, 200, server.image()

    server.behaviour = answer
    slow, fast = send(evenly(2), timeout_s=2).outcomes
    given_up.set()
    assert (slow.error, slow.status) == ("timeout", 0)
    assert slow.latency_s >= 2
    assert fast.answered


def test_failed_connections_are_recorded(server, send) -> None:
    server._http.socket.close()
    (outcome,) = send(evenly(1)).outcomes
    assert (outcome.error, outcome.status) == ("connection_failed", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "localhost:8000"}, "not the URL of a server; write http://host:port"),
        ({"base_url": "http://"}, "not the URL of a server"),
        ({"base_url": "http://a:port"}, "is not a URL: .* write http://host:port"),
        ({"slo_s": 0}, "slo_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"trace": Trace((), ())}, "the trace has no requests"),
    ],
)
def test_an_invalid_argument_is_refused_before_anything_is_sent(tmp_path: Path, change: dict, message: str) -> None:
    out = tmp_path / "run"
    given = {"trace": evenly(1), "base_url": "http://127.0.0.1:1", "slo_s": 5, **change}
    trace, base_url = given.pop("trace"), given.pop("base_url")
    with pytest.raises(ConfigError, match=message):
        replay(trace, base_url, out, ReplaySettings(**given))
    assert not out.exists()


def test_an_earlier_replay_is_not_overwritten(send) -> None:
    rows = send(evenly(1)).rows
    before = rows.read_bytes()
    with pytest.raises(ConfigError, match="holds an earlier replay; choose another folder"):
        send(evenly(1))
    assert rows.read_bytes() == before


def test_ctrl_c_ends_the_replay_with_complete_rows_and_no_partial_file(server, tmp_path: Path) -> None:
    server.behaviour = lambda n, body: (0.01 if n < 5 else 30, 200, server.image())
    program = (
        "import signal, sys\n"
        "from traces.replay import ReplaySettings, replay\n"
        "from traces.trace import Arrival, Trace\n"
        # Restores the default handler: processes that a shell starts in the background ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "trace = Trace.of([Arrival(i * 0.02, 'a, \"b\"\\nc', i) for i in range(2000)])\n"
        f"done = replay(trace, {server.url!r}, {str(tmp_path / 'run')!r}, ReplaySettings(5))\n"
        "assert done.interrupted and done.planned == 2000 and done.duration_s < 40\n"
        "sys.exit(len(done.outcomes))"
    )
    process = subprocess.Popen([sys.executable, "-W", "error", "-c", program], stderr=subprocess.PIPE)
    try:
        rows = tmp_path / "run/requests.csv"
        deadline = time.monotonic() + 60
        # Five images were answered, in rows of two lines each, and further requests wait.
        while not rows.exists() or rows.read_bytes().count(b"\n") < 1 + 2 * 5 or len(server.bodies) < 12:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 5, errors.decode()
    assert b"Traceback" not in errors
    assert rows.read_bytes().endswith(b"\n")
    with rows.open(newline="") as file:
        table = list(csv.reader(file))
    assert tuple(table[0]) == COLUMNS
    assert [len(row) for row in table] == [len(COLUMNS)] * 6
    assert len(read_outcomes(rows)) == 5
    assert not list((tmp_path / "run").rglob("*.part*"))


def test_the_progress_bar_counts_what_went_wrong_and_fits_80_columns(server, send, quiet) -> None:
    answers = [(200, server.image()), (200, server.image(path="heavy")), (429, server.error("overloaded"))]
    server.behaviour = lambda n, body: (0, *answers[n])
    send(evenly(3))
    assert "3/3 0 in flight · 1 refused" in " ".join(quiet.file.getvalue().split())


def outcome(**fields) -> RequestOutcome:
    return RequestOutcome(
        **{
            "index": 0,
            "arrival_s": 0.0,
            "sent_s": 0.0,
            "latency_s": 1.0,
            "status": 200,
            "error": "",
            "prompt": "a star",
            **fields,
        }
    )


def test_a_row_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    with OutcomeFile(tmp_path / "r.csv") as file:
        file.append(outcome(index=1))
        file.append(outcome(index=0, prompt='a, "b"'))
        assert [o.prompt for o in read_outcomes(tmp_path / "r.csv")] == ['a, "b"', "a star"]


def test_a_full_disk_is_reported_and_earlier_rows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with OutcomeFile(path) as file:
        file.append(outcome())
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(ConfigError, match=r"r\.csv: cannot be written: .*; the rows before"):
                    file.append(outcome(index=1))
            with pytest.raises(ConfigError, match="cannot be written"):
                save_outcomes([outcome(index=1)] * 9, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_outcomes(path) == [outcome()]
    assert list(tmp_path.iterdir()) == [path]


def test_saving_outcomes_replaces_the_file_atomically(tmp_path: Path) -> None:
    save_outcomes([outcome()], tmp_path / "r.csv")
    save_outcomes([outcome(quality=0.5, path="heavy", emulated=False)], tmp_path / "r.csv")
    assert read_outcomes(tmp_path / "r.csv") == [outcome(quality=0.5, path="heavy", emulated=False)]
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "x" + text, r"r\.csv: line 1: not a file of a replay"),
        (lambda text: text.replace("200", "2oo"), r"r\.csv: line 2, column status: invalid value '2oo'"),
        (lambda text: text.rstrip(",\n") + "\n", r"r\.csv: line 2, column model: invalid value None"),
        (lambda text: text.replace("heavy", "Up & down"), r"r\.csv: line 2, column path: invalid value 'Up & down'"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "r.csv"
    save_outcomes([outcome(path="heavy")], path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match=message):
        read_outcomes(path)

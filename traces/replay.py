"""Replays a trace against a server, open loop: each request leaves when the trace says so, however slow the answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from traces.outcome import Outcome, OutcomeFile
from traces.paths import in_order, read_path
from traces.plan_log import PlanLog
from traces.trace import Arrival, Trace
from weir import metrics as metrics_of
from weir.errors import ConfigError
from weir.files import written_whole
from weir.telemetry import Metrics, NoMetrics

#: Of the files in the folder of a replay.
ROWS = "requests.csv"
IMAGES = "images"

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
#: Characters of a server's message that are kept.
MOST_REASON = 300
#: Connections are opened and tasks started before the clock of the trace starts.
_HEAD_START_S = 0.1


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay leaves behind.

    Attributes:
        outcomes: of the requests that ended, in the order of the trace.
        rows: the CSV file with the same.
        planned: how many requests the trace holds.
        interrupted: Ctrl-C ended it early; requests in flight then have no outcome.
        duration_s: of the trace, or of the part of it that was replayed.
    """

    outcomes: list[Outcome]
    rows: Path
    planned: int
    interrupted: bool
    duration_s: float


def replay(
    trace: Trace,
    base_url: str,
    *,
    slo_s: float,
    out: Path | str,
    model: str | None = None,
    keep_images: bool = True,
    timeout_s: float = 60.0,
    key: str | None = None,
    metrics: Metrics | None = None,
    console: Console | None = None,
) -> Replay:
    """Sends every request of ``trace`` to ``{base_url}/v1/images/generations`` at its time and writes down what came.

    Nothing is retried: what a user of the server would see is what is recorded. Ctrl-C stops it early, with a whole
    file of what ended until then.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, with or without ``/v1``.
        slo_s: only for the progress bar and the metrics, which count the late.
        out: folder, made where missing; takes ``requests.csv`` and ``images/``.
        timeout_s: a request without its whole answer by then is given up.
        key: of the service, where it asks for one; it is written down nowhere.
        metrics: where it says how requests end, as they do.

    Raises:
        ConfigError: before anything is sent: an empty trace, a wrong URL, a folder in use, a time that is not positive.
    """
    out = Path(out)
    if not len(trace):
        raise ConfigError("the trace holds no request; clip it less or scale its rate less")
    for name, value in (("slo_s", slo_s), ("timeout_s", timeout_s)):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be above 0")
    client = _Client(_endpoint(base_url), model, timeout_s, out if keep_images else None, key)
    with OutcomeFile(out / ROWS) as file, _Board(trace, slo_s, console or Console(stderr=True)) as board:
        if keep_images:
            (out / IMAGES).mkdir(exist_ok=True)
        outcomes: list[Outcome] = []

        def ended(outcome: Outcome) -> None:
            file.append(outcome)
            outcomes.append(outcome)
            board.ended(outcome)
            told.add(metrics_of.REPLAYED, outcome=_ending(outcome, slo_s))
            told.observe(metrics_of.REPLAY_LATENCY, outcome.latency_s)

        told = metrics or NoMetrics()
        interrupted, plans = False, PlanLog()
        try:
            asyncio.run(_send_all(trace, client, board, ended, plans))
        except KeyboardInterrupt:
            interrupted = True
        except BaseExceptionGroup as failures:
            # Only writing can fail here (a full disk), and then every request fails alike: one says it all.
            raise failures.exceptions[0] from None
    plans.save(out)
    outcomes.sort(key=lambda o: o.index)
    duration_s = trace.duration_s
    if interrupted:
        duration_s = max((o.arrival_s for o in outcomes), default=0.0)
    return Replay(outcomes, out / ROWS, len(trace), interrupted, duration_s)


def _ending(outcome: Outcome, slo_s: float) -> str:
    if outcome.answered:
        return "in_time" if outcome.met(slo_s) else "late"
    return "refused" if outcome.refused else "failed"


def _endpoint(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{base_url!r} is no URL: {error}; write http://host:port") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{base_url!r} is no URL of a server; write http://host:port")
    return base_url.rstrip("/").removesuffix("/v1") + "/v1/images/generations"


class _Client:
    """Sends one request and turns whatever happens into an :class:`Outcome`."""

    def __init__(
        self, endpoint: str, model: str | None, timeout_s: float, keep_in: Path | None, key: str | None
    ) -> None:
        self._endpoint = endpoint
        self.live_url = endpoint.replace("/v1/images/generations", "/v1/live")
        self._model = model
        self._timeout_s = timeout_s
        self._keep_in = keep_in
        self._key = key

    def connect(self) -> httpx.AsyncClient:
        # Without a limit on connections none waits for another's answer; a proxy between would be measured too.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.AsyncClient(limits=limits, timeout=None, trust_env=False, headers=headers)

    async def ask(self, http: httpx.AsyncClient, index: int, arrival: Arrival, start: float) -> Outcome:
        body: dict[str, Any] = {"prompt": arrival.prompt, "n": 1, "response_format": "b64_json"}
        if self._model is not None:
            body["model"] = self._model
        if arrival.seed is not None:
            body["seed"] = arrival.seed
        clock = asyncio.get_running_loop().time
        sent = clock()
        status, error, reason, image = 0, "", "", b""
        said: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await http.post(self._endpoint, json=body)
        except TimeoutError:
            error, reason = "timeout", f"no answer within {self._timeout_s:g} s"
        except httpx.HTTPError as failure:
            error, reason = "connection_failed", str(failure) or type(failure).__name__
        else:
            status = answer.status_code
        latency_s = clock() - sent
        if not error:
            error, said, image = _understand(answer)
            reason = _reason(answer) if error else ""
        return Outcome(
            index=index,
            arrival_s=arrival.arrival_s,
            sent_s=sent - start,
            latency_s=latency_s,
            status=status,
            error=error,
            prompt=arrival.prompt,
            image=self._keep(index, image) if image else "",
            reason=reason[:MOST_REASON],
            **said,
        )

    def _keep(self, index: int, image: bytes) -> str:
        if self._keep_in is None:
            return ""
        suffix = next((s for magic, s in _SUFFIXES.items() if image.startswith(magic)), ".bin")
        name = f"{IMAGES}/{index:06d}{suffix}"
        with written_whole(self._keep_in / name) as draft:
            draft.write_bytes(image)
        return name


#: Fields of an answer's ``weir`` that an outcome keeps, with their types, and the one that it has another name for.
_SAID: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "model": str,
    "confidence": (int, float),
    "seed": int,
    "steps": int,
    "queue_s": (int, float),
    "compute_s": (int, float),
    "plan_version": int,
    "emulated": bool,
}


def _understand(answer: httpx.Response) -> tuple[str, dict[str, Any], bytes]:
    """(error code or "", what the server said of the image, the image's bytes)."""
    try:
        body = answer.json()
        if not answer.is_success:
            return str(body["error"]["code"] or body["error"]["type"]), {}, b""
        (item,) = body["data"]
        image = base64.b64decode(item["b64_json"], validate=True)
        about = item.get("weir") or {}
        said = {k: about[k] for k, kind in _SAID.items() if isinstance(about.get(k), kind)}
        if isinstance(about.get("latency_s"), (int, float)):
            said["served_s"] = about["latency_s"]
        if about.get("path") is not None:
            said["path"] = read_path(about["path"])
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return ("invalid_answer" if answer.is_success else f"http_{answer.status_code}"), {}, b""
    return ("" if image else "invalid_answer"), said, image


def _reason(answer: httpx.Response) -> str:
    """What a server says about its error."""
    try:
        return " ".join(str(answer.json()["error"]["message"]).split())
    except (ValueError, KeyError, TypeError):
        return f"an answer with status {answer.status_code} that is not of this API"


async def _send_all(
    trace: Trace, client: _Client, board: _Board, ended: Callable[[Outcome], None], plans: PlanLog
) -> None:
    """One task for each request, each started at its time; on cancellation all end before this returns."""
    loop = asyncio.get_running_loop()
    async with client.connect() as http:
        start = loop.time() + _HEAD_START_S

        async def one(index: int, arrival: Arrival) -> None:
            ended(await client.ask(http, index, arrival, start))

        following = loop.create_task(plans.follow(http, client.live_url, start))
        try:
            async with asyncio.TaskGroup() as group:
                for index, arrival in enumerate(trace):
                    await asyncio.sleep(start + arrival.arrival_s - loop.time())
                    group.create_task(one(index, arrival))
                    board.sent()
        finally:
            following.cancel()


class _Board:
    """The progress bar."""

    def __init__(self, trace: Trace, slo_s: float, console: Console) -> None:
        self._slo_s = slo_s
        self._sent = 0
        self._counts: Counter[str] = Counter()
        self._paths: set[str | None] = set()
        self._progress = Progress(
            TextColumn("replay"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=len(trace), state="")

    def sent(self) -> None:
        self._sent += 1
        self._show()

    def ended(self, outcome: Outcome) -> None:
        self._counts["ended"] += 1
        if outcome.refused:
            self._counts["refused"] += 1
        elif not outcome.answered:
            self._counts["failed"] += 1
        else:
            self._paths.add(outcome.path)
            self._counts[outcome.path or "answered"] += 1
            self._counts["late"] += not outcome.met(self._slo_s)
        self._show()

    def _show(self) -> None:
        in_flight = self._sent - self._counts["ended"]
        shown = [f"{in_flight} in flight"]
        kinds = (*in_order(self._paths), "late", "refused", "failed")
        shown += [f"{self._counts[kind]} {kind}" for kind in kinds if self._counts[kind]]
        self._progress.update(self._task, completed=self._counts["ended"], state=" · ".join(shown))

    def __enter__(self) -> _Board:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

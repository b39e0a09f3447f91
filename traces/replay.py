"""The replay client: sends each request of a trace at its time, regardless of pending answers (open loop)."""

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

from traces.outcome import OutcomeFile, RequestOutcome
from traces.paths import read_path
from traces.plan_log import PlanLog
from traces.trace import Arrival, Trace
from weir import metrics as metrics_of
from weir.errors import ConfigError
from weir.files import written_whole
from weir.telemetry import Metrics, NoMetrics

#: Names in the folder of a replay: the file of outcomes and the folder of images.
ROWS = "requests.csv"
IMAGES = "images"

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
#: Largest number of characters of an error message that are kept.
MAX_REASON_CHARACTERS = 300
#: Time before the first arrival, to start the event loop's tasks.
_HEAD_START_S = 0.1


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of a replay.

    Attributes:
        outcomes: outcomes of the requests that ended, in the order of the trace.
        rows: path of the CSV file of outcomes.
        planned: number of requests of the trace.
        interrupted: whether Ctrl-C ended the replay; requests in flight then have no outcome.
        duration_s: duration of the trace, or of the part that was replayed.
    """

    outcomes: list[RequestOutcome]
    rows: Path
    planned: int
    interrupted: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How the requests of a trace are sent and counted.

    Attributes:
        slo_s: deadline by which the progress bar and the metrics count late images.
        model: to request; None: the service's default.
        keep_images: whether the images are kept in the folder of the replay.
        timeout_s: time limit for the complete response to a request.
        key: API key of the service, if it needs one; it is not written to any file.
    """

    slo_s: float
    model: str | None = None
    keep_images: bool = True
    timeout_s: float = 60.0
    key: str | None = None

    def check(self) -> None:
        """Checks the times.

        Raises:
            ConfigError: one is not positive.
        """
        for name, value in (("slo_s", self.slo_s), ("timeout_s", self.timeout_s)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; it must be above 0")


def replay(
    trace: Trace,
    base_url: str,
    out: Path | str,
    settings: ReplaySettings,
    *,
    metrics: Metrics | None = None,
    console: Console | None = None,
) -> Replay:
    """Sends every request of ``trace`` to ``{base_url}/v1/images/generations`` at its time and records the outcomes.

    Requests are not retried, so that outcomes are those of the server. Ctrl-C stops the replay early; the file then
    holds the outcomes so far.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, with or without ``/v1``.
        out: folder for ``requests.csv`` and ``images/``; created if missing.
        metrics: records the outcome of each request when it ends.

    Raises:
        ConfigError: raised before anything is sent: the trace is empty, the URL is invalid, the folder holds a replay,
            or a time is not positive.
    """
    out, slo_s = Path(out), settings.slo_s
    if not len(trace):
        raise ConfigError("the trace has no requests; clip it less or use a larger rate scale")
    settings.check()
    client = _Client(_endpoint(base_url), settings, out)
    with OutcomeFile(out / ROWS) as file, _ProgressBar(trace, slo_s, console or Console(stderr=True)) as progress:
        if settings.keep_images:
            (out / IMAGES).mkdir(exist_ok=True)
        outcomes: list[RequestOutcome] = []

        def ended(outcome: RequestOutcome) -> None:
            file.append(outcome)
            outcomes.append(outcome)
            progress.ended(outcome)
            recorder.add(metrics_of.REPLAYED, outcome=_outcome_label(outcome, slo_s))
            recorder.observe(metrics_of.REPLAY_LATENCY, outcome.latency_s)

        recorder = metrics or NoMetrics()
        interrupted, plans = False, PlanLog()
        try:
            asyncio.run(_send_all(trace, client, progress, ended, plans))
        except KeyboardInterrupt:
            interrupted = True
        except BaseExceptionGroup as failures:
            # Only writing can fail here (a full disk), and then it fails for every request in the same way.
            raise failures.exceptions[0] from None
    plans.save(out)
    outcomes.sort(key=lambda o: o.index)
    duration_s = trace.duration_s
    if interrupted:
        duration_s = max((o.arrival_s for o in outcomes), default=0.0)
    return Replay(outcomes, out / ROWS, len(trace), interrupted, duration_s)


def _outcome_label(outcome: RequestOutcome, slo_s: float) -> str:
    if outcome.answered:
        return "in_time" if outcome.met(slo_s) else "late"
    return "refused" if outcome.refused else "failed"


def _endpoint(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{base_url!r} is not a URL: {error}; write http://host:port") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{base_url!r} is not the URL of a server; write http://host:port")
    return base_url.rstrip("/").removesuffix("/v1") + "/v1/images/generations"


class _Client:
    """Sends single requests and converts results and failures to :class:`RequestOutcome`."""

    def __init__(self, endpoint: str, settings: ReplaySettings, out: Path) -> None:
        self._endpoint = endpoint
        self.live_url = endpoint.replace("/v1/images/generations", "/v1/live")
        self._settings = settings
        self._out = out

    def connect(self) -> httpx.AsyncClient:
        # Without a limit on connections, no request waits for another response. Proxies are not used.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        key = self._settings.key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(limits=limits, timeout=None, trust_env=False, headers=headers)

    async def ask(self, http: httpx.AsyncClient, index: int, arrival: Arrival, start: float) -> RequestOutcome:
        body: dict[str, Any] = {"prompt": arrival.prompt, "n": 1, "response_format": "b64_json"}
        if self._settings.model is not None:
            body["model"] = self._settings.model
        if arrival.seed is not None:
            body["seed"] = arrival.seed
        if arrival.size is not None:
            body["size"] = str(arrival.size)
        clock = asyncio.get_running_loop().time
        sent = clock()
        status, error, reason, image = 0, "", "", b""
        details: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                response = await http.post(self._endpoint, json=body)
        except TimeoutError:
            error, reason = "timeout", f"no response within {self._settings.timeout_s:g} s"
        except httpx.HTTPError as failure:
            error, reason = "connection_failed", str(failure) or type(failure).__name__
        else:
            status = response.status_code
        latency_s = clock() - sent
        if not error:
            error, details, image = _parse_response(response)
            reason = _reason(response) if error else ""
        return RequestOutcome(
            index=index,
            arrival_s=arrival.arrival_s,
            sent_s=sent - start,
            latency_s=latency_s,
            status=status,
            error=error,
            prompt=arrival.prompt,
            size="" if arrival.size is None else str(arrival.size),
            image=self._keep(index, image) if image else "",
            reason=reason[:MAX_REASON_CHARACTERS],
            **details,
        )

    def _keep(self, index: int, image: bytes) -> str:
        if not self._settings.keep_images:
            return ""
        suffix = next((s for magic, s in _SUFFIXES.items() if image.startswith(magic)), ".bin")
        name = f"{IMAGES}/{index:06d}{suffix}"
        with written_whole(self._out / name) as draft:
            draft.write_bytes(image)
        return name


#: Fields of ``weir`` in a response that an outcome records under the same name, with their types.
_RECORDED_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "model": str,
    "confidence": (int, float),
    "seed": int,
    "steps": int,
    "batch_size": int,
    "queue_s": (int, float),
    "compute_s": (int, float),
    "plan_version": int,
    "emulated": bool,
}


def _parse_response(response: httpx.Response) -> tuple[str, dict[str, Any], bytes]:
    """Returns (error code or "", fields of the outcome, the image's bytes)."""
    try:
        body = response.json()
        if not response.is_success:
            return str(body["error"]["code"] or body["error"]["type"]), {}, b""
        (item,) = body["data"]
        image = base64.b64decode(item["b64_json"], validate=True)
        about = item.get("weir") or {}
        details = {k: about[k] for k, kind in _RECORDED_FIELDS.items() if isinstance(about.get(k), kind)}
        if isinstance(about.get("latency_s"), (int, float)):
            details["served_s"] = about["latency_s"]
        if about.get("path") is not None:
            details["path"] = read_path(about["path"])
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return ("invalid_answer" if response.is_success else f"http_{response.status_code}"), {}, b""
    return ("" if image else "invalid_answer"), details, image


def _reason(response: httpx.Response) -> str:
    """The error message in a response."""
    try:
        return " ".join(str(response.json()["error"]["message"]).split())
    except (ValueError, KeyError, TypeError):
        return f"a response with status {response.status_code} in an unknown format"


async def _send_all(
    trace: Trace, client: _Client, progress: _ProgressBar, ended: Callable[[RequestOutcome], None], plans: PlanLog
) -> None:
    """Starts one task for each request at its time. On cancellation, all tasks end before this returns."""
    loop = asyncio.get_running_loop()
    async with client.connect() as http:
        start = loop.time() + _HEAD_START_S

        async def send(index: int, arrival: Arrival) -> None:
            ended(await client.ask(http, index, arrival, start))

        following = loop.create_task(plans.follow(http, client.live_url, start))
        try:
            async with asyncio.TaskGroup() as group:
                for index, arrival in enumerate(trace):
                    await asyncio.sleep(start + arrival.arrival_s - loop.time())
                    group.create_task(send(index, arrival))
                    progress.sent()
        finally:
            following.cancel()
            await asyncio.wait([following])


class _ProgressBar:
    """The progress bar of a replay, with the counts that say how it goes; a terminal of 80 columns holds them all."""

    def __init__(self, trace: Trace, slo_s: float, console: Console) -> None:
        self._slo_s = slo_s
        self._sent = 0
        self._counts: Counter[str] = Counter()
        self._progress = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=len(trace), state="")

    def sent(self) -> None:
        self._sent += 1
        self._show()

    def ended(self, outcome: RequestOutcome) -> None:
        self._counts["ended"] += 1
        if outcome.refused:
            self._counts["refused"] += 1
        elif not outcome.answered:
            self._counts["failed"] += 1
        else:
            self._counts["late"] += not outcome.met(self._slo_s)
        self._show()

    def _show(self) -> None:
        in_flight = self._sent - self._counts["ended"]
        shown = [f"{in_flight} in flight"]
        shown += [f"{self._counts[kind]} {kind}" for kind in ("late", "refused", "failed") if self._counts[kind]]
        self._progress.update(self._task, completed=self._counts["ended"], state=" · ".join(shown))

    def __enter__(self) -> _ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

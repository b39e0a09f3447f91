"""Replay a trace against a service, and lay replays side by side: ``weir replay``, ``weir report``."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import grouped
from cli.terminal import KEY_REMEDY, JsonOption, console, error_exit, note, print_json, print_line
from weir import __version__
from weir.config import load_family
from weir.errors import ConfigError
from weir.files import check_place, file_format
from weir.json_files import read_json

if TYPE_CHECKING:
    from quality.scorer import Scorer
    from traces.trace import Trace

#: Deadline of a report, seconds, for a server that does not say its own.
USUAL_SLO_S = 10.0
#: Largest number of reasons that the terminal shows; the report has all.
MAX_REASONS = 5


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of the report of a replay."""

    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="runs/<time>")] = None
    slo: Annotated[
        float | None, typer.Option(min=0.001, help="Deadline of the report, seconds.", show_default="the service's")
    ] = None
    score: Annotated[Path | None, typer.Option(help="Family file: score the images with its judge.")] = None

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")

    def deadline_s(self, base: str, facts: Mapping[str, Any]) -> float:
        """The deadline of the option or of the service, or the usual one for a server that says none."""
        if self.slo:
            return self.slo
        if "slo_s" not in facts:
            note(f"{base} does not say its deadline; answers within {USUAL_SLO_S:g} s are in time (--slo changes it)")
        return float(facts.get("slo_s", USUAL_SLO_S))

    def judge(self, requests: Trace) -> tuple[str, Scorer] | None:
        """The name of the measure for the images of a replay, and its scorer; None without --score.

        Raises:
            ConfigError: the family has no measure.
        """
        from quality.scorer import family_scorer

        if self.score is None:
            return None
        judge = family_scorer(load_family(self.score), [a.prompt for a in requests])
        if judge is None:
            raise ConfigError(
                f"{self.score}: the family has neither a discriminator's checker nor a clip to score with"
            )
        return judge


@dataclass(frozen=True, slots=True)
class ArrivalOptions:
    """Options of the requests of a trace."""

    duration: Annotated[float | None, typer.Option(min=1, help="Replay only the first seconds.")] = None
    rate: Annotated[float, typer.Option(min=0.0001, help="Factor on the request rate.")] = 1.0
    speed: Annotated[float, typer.Option(min=0.0001, help="Factor on the speed of time.")] = 1.0
    redraw: Annotated[int | None, typer.Option(help="Resample arrivals from the rate curve with this seed.")] = None
    cv: Annotated[
        float | None, typer.Option(min=0.01, help="With --redraw: coefficient of variation of gamma gaps.")
    ] = None
    prompts: Annotated[Path | None, typer.Option(help="Prompts file for traces with prompt ids.")] = None

    def read(self, trace: Path) -> Trace:
        """The requests of a trace file.

        Raises:
            ConfigError: the file or an option is invalid.
        """
        from traces.loader import load_trace

        requests = load_trace(trace, prompts=self.prompts, seed=self.redraw or 0)
        if self.duration is not None:
            requests = requests.clip(self.duration)
        if self.rate != 1:
            requests = requests.scale_rate(self.rate)
        if self.speed != 1:
            requests = requests.scale_speed(self.speed)
        return requests if self.redraw is None else requests.resample(self.redraw, self.cv)


@dataclass(frozen=True, slots=True)
class SendingOptions:
    """Options of the client that sends the requests."""

    model: Annotated[str | None, typer.Option(help="Model to request.")] = None
    timeout: Annotated[float, typer.Option(min=0.1, help="Time limit of a request, seconds.")] = 120.0
    images: Annotated[bool, typer.Option(help="Keep the images for the gallery.")] = True
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on 127.0.0.1 for metrics of the replay.")
    ] = None


@grouped
def replay(
    trace: Annotated[Path, typer.Argument(help="Trace file in Weir's or DiffServe's format, a rate curve, or a log.")],
    url: Annotated[str | None, typer.Option(help="Base URL.", show_default="the service that is up")] = None,
    *,
    reporting: ReportOptions,
    arrivals: ArrivalOptions,
    sending: SendingOptions,
    as_json: JsonOption = False,
) -> None:
    """Replay a trace, open loop, and write a report.

    The API key, if the service needs one, is read from WEIR_API_KEY. The exit code is 1 if no request got an image.

    Example: weir replay traces/bursty.csv --duration 120 --rate 0.5
    """
    from deploy.local import status as look
    from traces.acceptance import service_facts
    from traces.figures import Scope
    from traces.replay import ReplaySettings
    from traces.replay import replay as send
    from traces.report import write_report
    from weir.telemetry import exposed

    with error_exit():
        requests = arrivals.read(trace)
        judge = reporting.judge(requests)
        base, model = url or look()["url"], sending.model
        _announce_refusals(base, requests, model)
        key = os.environ.get("WEIR_API_KEY")  # an option would be visible in the process list
        facts = service_facts(base, key)
        slo_s = reporting.deadline_s(base, facts)
        note(f"{len(requests)} requests over {_duration(requests.duration_s)}, to {base}")
        folder = reporting.folder
        metrics = None if sending.metrics_port is None else exposed(sending.metrics_port, console)
        settings = ReplaySettings(slo_s, model, sending.images, sending.timeout, key)
        result = send(requests, base, folder, settings, metrics=metrics, console=console)
        about = {"trace": trace.name, "rate": f"× {arrivals.rate:g}", "model": model or "default", **_made_with(facts)}
        summary = write_report(
            result.outcomes,
            folder,
            Scope(slo_s, duration_s=result.duration_s, planned=result.planned),
            title=f"Replay of {trace.name}",
            about=about | ({"quality": judge[0]} if judge else {}),
            scorer=judge[1] if judge else None,
        )
    if as_json:
        print_json(read_json(folder / "report.json"))
    else:
        _print_summary(summary, folder)
    unanswered = bool(result.outcomes) and not any(it.answered for it in result.outcomes)
    if unanswered:
        first = summary.reasons[0]
        remedy = f"; {KEY_REMEDY}" if first.status == HTTPStatus.UNAUTHORIZED else ""
        note(f" {base} answered none of {len(result.outcomes)} requests: {first.reason}{remedy}", bold="error:")
    raise typer.Exit(130 if result.interrupted else int(unanswered))


def _announce_refusals(base: str, requests: Trace, model: str | None) -> None:
    """Says which requests the service will refuse, by the description of its API."""
    from traces.acceptance import accepted_fields, expected_refusals

    fields = accepted_fields(base)
    if fields is None:
        note(f"{base} has no description of its API; refusals will be in the report")
    for line in expected_refusals(fields or {}, requests, model):
        note(line, bold="the service will refuse ")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of replays.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("runs/side-by-side.html"),
) -> None:
    """Lay the reports of several replays side by side on one page: figures, plots, and what they were made with.

    Example: weir report runs/weir runs/diffserve --out runs/both.html
    """
    from traces.side_by_side import write_side_by_side

    with error_exit():
        file_format(out, ["html"])
        check_place(out)
        write_side_by_side(runs, out)
    print_line(f"the page is in {out}")


def _made_with(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a replay was made with: the service, this machine, and the command that repeats it."""
    known = {name: str(facts[name]) for name in ("family", "policy", "device") if facts.get(name)}
    if "version" in facts:
        known["service"] = f"Weir {facts['version']}"
    return {
        **known,
        "client": f"Weir {__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["weir", *sys.argv[1:]]),
    }


def _print_summary(summary: Any, folder: Path) -> None:
    total = summary.total
    rows = {
        "requests": f"{total.requests}",
        "violations": f"{total.violation_ratio:.2%} (late, refused or failed)",
        "goodput": f"{total.goodput_rps:.2f} answers in time per second",
        "latency": f"p50 {_seconds(total.p50_s)}, p95 {_seconds(total.p95_s)}, p99 {_seconds(total.p99_s)}",
        "answers": " · ".join(f"{count} {path}" for path, count in total.paths.items()) or "—",
        "light share": "—" if total.light_share is None else f"{total.light_share:.0%}",
        "quality": "—" if total.quality is None else f"{total.quality:.3f} (higher is better)",
        "report": str(folder / "report.html"),
    }
    for key, value in rows.items():
        print_line(f"  {value}", bold=f"{key:>12}")
    for it in summary.reasons[:MAX_REASONS]:
        print_line(f"  {it.count} × {it.status or 'no answer'} {it.code}: {it.reason}", bold=f"{'no image':>12}")
    if more := summary.reasons[MAX_REASONS:]:
        print_line(
            f"  {sum(it.count for it in more)} × for {len(more)} other reasons, see the report",
            bold=f"{'no image':>12}",
        )


def _duration(seconds: float) -> str:
    """A duration in a readable unit."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days; --duration and --speed make it shorter"


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f} s"

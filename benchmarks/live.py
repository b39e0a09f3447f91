"""Compares the cluster with the simulator: 16 emulated workers on a whole trace of DiffServe, in real time.

    python -m benchmarks.live --data DIR [--policy weir] [--dilation 1] [--out live.json]

DIR is a folder with files of DiffServe's artifact (not part of this project): ``trace_4to32qps.txt`` and
``dist_sdturbo.txt``. ``weir up`` starts the emulated cluster with the times, scores and FID of cascade 1; the trace is
replayed over HTTP while the controller plans. Then the simulator runs the same arrivals with the same confidences under
the same policy. It uses the network delays between load balancer and workers from the answers, and runs once more
without delays, as ``undelayed``.

The whole trace takes 6 minutes; ``--start 170 --duration 90`` is its busiest part. On a machine that is too small for
the load, ``--dilation 4`` makes arrivals, deadline and batches four times as slow in both; the periods of the
controller stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from baselines.published import CASCADES
from benchmarks import command, diffserve_file, served
from controller.registry import make_policy
from controller.setting import Setting
from simulator.arrivals import Arrivals, read_arrivals
from simulator.conditions import Conditions
from simulator.confidences import read_scores
from simulator.engine import simulate
from simulator.outcome import UNANSWERED, Outcome
from simulator.report import report
from simulator.request_stream import RequestStream
from testing.service_files import service_file
from traces.outcome import RequestOutcome as Answer
from traces.replay import Replay, ReplaySettings, replay
from traces.trace import Arrival, Trace
from weir.cascade import AT_DEADLINE
from weir.core import ImageRequest, ImageSize
from weir.plan import HEAVY, LIGHT
from weir.profiles import Profile
from workers.emulated import EmulatedEngine

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
CONFIG = DEPLOY / "configs" / "emulated-16.yaml"
#: Family of cascade 1. Its numbers of steps must equal those of the profile.
FAMILY = DEPLOY / "families" / "sd15-turbo.yaml"
GPUS = 16
#: Largest accepted difference of cluster and simulator, as a share of the requests.
GOALS = {"violation_ratio": 0.003, "light_share": 0.02}
PATHS = (LIGHT, LIGHT + AT_DEADLINE, HEAVY)


def cascade_profile(scores: Path, dilation: float) -> Profile:
    """Builds the profile of cascade 1: published times (light ones with the discriminator), recorded scores, FID."""
    cascade = CASCADES["diffserve-1"]

    def variant(name: str, steps: int, latency: Any, more_s: float = 0.0) -> dict[str, Any]:
        seconds = [dilation * (s + more_s) for s in latency.latency_s]
        return {"name": name, "steps": steps, "batch_sizes": latency.batch_sizes, "latency_s": seconds}

    return Profile.model_validate(
        {
            "family": cascade.name,
            "device": "a100",
            "light": variant("sd-turbo", 1, cascade.light, cascade.discriminator_s),
            "heavy": variant("sd-1.5", 50, cascade.heavy),
            "confidences": read_scores(scores).tolist(),
            "quality": {"values": cascade.fid, "smaller_is_better": True},
        }
    )


def confidences(profile: Profile, trace: Trace) -> np.ndarray:
    """Returns the confidences that the emulated workers will report."""
    engine = EmulatedEngine(profile)

    def request(arrival: Arrival) -> ImageRequest:
        return ImageRequest("", arrival.prompt, arrival.seed or 0, size=ImageSize(0, 0), deadline=0)

    return np.array([engine.confidence(request(arrival), LIGHT) for arrival in trace])


def as_outcome(answers: list[Answer], planned: int, slo_s: float, policy: str) -> Outcome:
    """Converts the replay to an outcome of the simulator, with latencies by the client's clock."""
    arrivals, finished = np.zeros(planned), np.full(planned, np.inf)
    paths = np.full(planned, UNANSWERED, dtype="U32")
    for a in answers:
        arrivals[a.index] = a.arrival_s
        paths[a.index] = a.path or UNANSWERED
        if a.answered:
            finished[a.index] = a.arrival_s + a.latency_s
    whole = np.zeros(planned)  # there is no cache and there are no short runs
    ladder = (LIGHT, HEAVY)
    return Outcome(policy, slo_s, ladder, arrivals, finished, paths, whole.astype(int), whole, 0.0, 0, (), GPUS)


def network_delays(answers: list[Answer]) -> tuple[float, ...]:
    """Returns the one-way delays to a worker, seconds: the time beyond queue and computation, divided by the calls."""
    calls = {LIGHT: 1, HEAVY: 2}  # an answer at the deadline may have waited for a second call
    return tuple(
        max(0.0, a.served_s - a.queue_s - a.compute_s) / (2 * calls[a.path])
        for a in answers
        if a.path in calls and a.served_s is not None and a.queue_s is not None and a.compute_s is not None
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default="weir")
    parser.add_argument("--dilation", type=float, default=1.0, help="factor on all times of arrivals and batches")
    parser.add_argument("--duration", type=float, default=float("inf"), help="seconds of the trace, before dilation")
    parser.add_argument("--start", type=float, default=0.0, help="first second of the trace")
    parser.add_argument("--out", type=Path, help="also write the figures here")
    return parser.parse_args()


def replayed(profile: Profile, policy: str, trace: Trace, slo_s: float) -> Replay:
    """Replays the trace against the emulated service."""
    with tempfile.TemporaryDirectory(prefix="weir-live-") as name:
        folder = Path(name)
        (folder / "profile.json").write_text(profile.model_dump_json())
        config = service_file(
            CONFIG,
            folder / "live.yaml",
            policy=policy,
            slo_s=slo_s,
            family=str(FAMILY),
            pool={"emulate": str(folder / "profile.json")},
        )
        with served(config, folder / "state") as service:
            settings = ReplaySettings(slo_s, keep_images=False, timeout_s=10 * slo_s)
            return replay(trace, service.url, folder / "replay", settings, console=Console(stderr=True))


def main() -> None:
    arguments = read_arguments()
    dilation = arguments.dilation
    slo_s = dilation * CASCADES["diffserve-1"].slo_s
    profile = cascade_profile(diffserve_file(arguments.data, "dist_sdturbo.txt"), dilation)
    recorded = read_arrivals(diffserve_file(arguments.data, "trace_4to32qps.txt"))
    since = recorded.times_s - arguments.start
    inside = (since >= 0) & (since < arguments.duration)
    arrivals = Arrivals.of(dilation * since[inside], recorded.prompts[inside])
    trace = Trace.of(
        [
            Arrival(t, f"prompt {n}", n)
            for t, n in zip(arrivals.times_s.tolist(), arrivals.prompts.tolist(), strict=True)
        ]
    )

    setting, judged = Setting.of(profile, GPUS, slo_s), confidences(profile, trace)

    def simulated(transit_s: tuple[float, ...] = ()) -> Outcome:
        requests = RequestStream(arrivals, {LIGHT: judged})
        return simulate(make_policy(arguments.policy, setting), requests, profile, Conditions(transit_s=transit_s))

    done = replayed(profile, arguments.policy, trace, slo_s)
    live = as_outcome(done.outcomes, len(trace), slo_s, arguments.policy)
    one_way_s = network_delays(done.outcomes)
    runs = {"live": live, "simulated": simulated(one_way_s), "undelayed": simulated()}
    rows = {run: report(outcome, setting.quality) for run, outcome in runs.items()}
    paths = {
        run: {path: round(float((outcome.paths == path).mean()), 5) for path in PATHS} for run, outcome in runs.items()
    }
    kept = ("violation_ratio", "light_share", "windowed_quality", "goodput_rps", "p50_s", "p95_s", "p99_s")
    statuses = Counter(str(a.status) for a in done.outcomes)
    figures: dict[str, Any] = {
        "policy": arguments.policy,
        "requests": len(trace),
        "dilation": dilation,
        "slo_s": slo_s,
        **{run: {key: round(row.to_dict()[key], 5) for key in kept} for run, row in rows.items()},
        "paths": paths,
        "statuses": dict(statuses),
        "lost": len(trace) - len(done.outcomes) + statuses["0"],
        "answers_5xx": sum(n for code, n in statuses.items() if code.startswith("5")),
        "plans": len({a.plan_version for a in done.outcomes if a.plan_version is not None}),
        "one_way_p50_p90_p99_s": np.percentile(one_way_s or (0.0,), (50, 90, 99)).round(4).tolist(),
        "client_lateness_p99_s": round(float(np.percentile([a.sent_s - a.arrival_s for a in done.outcomes], 99)), 4),
    }
    differences = {key: abs(figures["live"][key] - figures["simulated"][key]) for key in GOALS}
    figures["difference"] = {key: round(value, 5) for key, value in differences.items()}
    figures["within"] = {key: differences[key] <= most for key, most in GOALS.items()}
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    command(main)

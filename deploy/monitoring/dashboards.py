"""The dashboards: Overview, Cascade, Cache, Controller. Grafana is provisioned with the JSON that this writes.

python -m deploy.monitoring.dashboards
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.monitoring.panels import Query, lines, placed, row, spread, stat
from weir import metrics
from weir.metrics import Metric

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
#: Of @grafana/schema, which `make check-dashboards` holds the files against.
SCHEMA_VERSION = 42
WINDOW = "$__rate_interval"


def _name(metric: Metric) -> str:
    return f"ray_{metric.name}"


def _rate(metric: Metric, where: str = "", by: str = "") -> str:
    """How fast a counter grows in all processes together."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({_name(metric)}{where}[{WINDOW}]))"


def _or_zero(expr: str) -> str:
    """Counters that nothing has happened to are not there yet."""
    return f"({expr}) or vector(0)"


def _each(metric: Metric, label: str, values: tuple[str, ...], unit: str = "") -> list[Query]:
    """One curve for each value of a label, there even while nothing happened."""
    return [Query(_or_zero(_rate(metric, f'{{{label}="{value}"}}')), unit or value) for value in values]


def _now(metric: Metric, by: str = "") -> str:
    """A gauge; processes that went away may still be shown beside the one that took their place."""
    return f"max by ({by}) ({_name(metric)})" if by else f"max({_name(metric)})"


def _quantile(share: float, metric: Metric, by: str = "") -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({_name(metric)}_bucket[{WINDOW}])))"


def _quantiles(metric: Metric) -> list[Query]:
    return [Query(_quantile(share, metric), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)]


def _by_role(metric: Metric) -> list[Query]:
    return [
        Query(_quantile(0.5, metric, "role"), "{{role}} p50"),
        Query(_quantile(0.95, metric, "role"), "{{role}} p95"),
    ]


def overview() -> dict[str, Any]:
    late = 'ray_weir_violations_total{kind="%s"}'
    return _dashboard(
        "overview",
        "Weir: Overview",
        "Whether the promise is kept, at which quality, and what the replicas do for it.",
        [
            stat("Demand", Query("weir:demand:rps1m"), unit="reqps", decimals=2, help="Images asked for per second."),
            stat(
                "In time",
                Query("1 - weir:violations:ratio_rate5m"),
                unit="percentunit",
                decimals=2,
                colour="#2E9E6B",
                alarm_below=0.99,
                help="Of the images asked for in 5 minutes: answered before the deadline.",
            ),
            stat(
                "Quality",
                Query("weir:quality:ratio_rate1m"),
                unit="percentunit",
                decimals=1,
                colour="#3366CC",
                help="Estimated share of answers that are good enough: a light image counts its confidence, a heavy 1.",
            ),
            stat(
                "Light share",
                Query("weir:light_share:ratio_rate1m"),
                unit="percentunit",
                decimals=1,
                colour="#F2A93B",
                help="Answers that the light variant drew.",
            ),
            stat(
                "Load",
                Query("weir:demand:rps1m / weir:capacity:rps"),
                unit="percentunit",
                decimals=0,
                colour="#2E9E6B",
                alarm_above=1,
                help="Demand over what the plan's replicas can carry.",
            ),
            stat(
                "Alerts",
                Query('count(ALERTS{alertstate="firing"}) or vector(0)'),
                unit="short",
                colour="#2E9E6B",
                alarm_above=1,
                help="Rules that fire now; docs/monitoring.md says what to do about each.",
            ),
            lines(
                "Demand against capacity",
                [
                    Query(_rate(metrics.ASKED), "demand"),
                    Query(_rate(metrics.ADMITTED), "admitted"),
                    Query("weir:capacity:rps", "capacity"),
                    Query(_or_zero(_now(metrics.FORECAST)), "planned for"),
                ],
                unit="reqps",
                help="What is asked for, what is let in, what the plan was made for, and what its replicas can carry "
                "if nothing is deferred.",
            ),
            lines(
                "Replicas by role",
                [Query(_now(metrics.REPLICAS_READY, "role"), "{{role}}")],
                unit="short",
                stacked=True,
                steps=True,
                help="Live replicas, by the role that the plan gives them.",
            ),
            lines(
                "Broken promises",
                [
                    Query(f"(sum (rate({late % kind}[{WINDOW}]))) or vector(0)", kind)
                    for kind in ("late", "failed", "refused")
                ],
                unit="reqps",
                stacked=True,
                help="Images that were answered after the deadline, failed, or were refused.",
            ),
            lines(
                "Time to the answer",
                [*_quantiles(metrics.LATENCY), Query(_now(metrics.DEADLINE), "deadline")],
                unit="s",
                help="From admission to the answer; the deadline is the promise.",
            ),
            lines(
                "Quality and light share",
                [Query("weir:quality:ratio_rate1m", "quality"), Query("weir:light_share:ratio_rate1m", "light share")],
                unit="percentunit",
                most=1,
                help="What the demand costs: the more the light variant answers, the less is good enough.",
            ),
            lines(
                "Answers by path",
                [Query(_rate(metrics.ANSWERED, by="path"), "{{path}}")],
                unit="reqps",
                stacked=True,
                help="Light: good enough. Light-deadline: deferred, but a heavy image would be late. Heavy: drawn from "
                "noise. Cache: gone on from another prompt's state.",
            ),
        ],
    )


def cascade() -> dict[str, Any]:
    return _dashboard(
        "cascade",
        "Weir: Cascade",
        "Light images, their judge, and the heavy ones that follow; queues and batches at the replicas.",
        [
            row("The judge"),
            spread(
                "Confidence of light images",
                _name(metrics.CONFIDENCE),
                unit="short",
                help="The discriminator's confidence; those below the threshold are drawn again, heavy.",
            ),
            lines(
                "Threshold and confidence",
                [
                    Query(_now(metrics.PLAN_THRESHOLD), "threshold"),
                    Query(_quantile(0.25, metrics.CONFIDENCE), "confidence p25"),
                    Query(_quantile(0.5, metrics.CONFIDENCE), "confidence p50"),
                    Query(_quantile(0.75, metrics.CONFIDENCE), "confidence p75"),
                ],
                unit="short",
                most=1,
                help="A threshold that crosses the middle of the confidences defers half of the images.",
            ),
            lines(
                "Deferred share",
                [
                    Query("weir:deferral:ratio_rate1m", "deferred"),
                    Query(_or_zero(_now(metrics.PLANNED_DEFERRAL)), "planned"),
                ],
                unit="percentunit",
                most=1,
                help="Light images below the threshold, beside the share that the plan was made for.",
            ),
            lines(
                "Heavy images that were too late",
                [Query(_or_zero(_rate(metrics.ANSWERED, '{path="light-deadline"}')), "light-deadline")],
                unit="reqps",
                help="Deferred images that were answered with the light one, for the heavy would have missed the "
                "deadline.",
            ),
            row("The replicas"),
            lines(
                "Utilisation by role",
                [Query("weir:utilisation:ratio_rate1m", "{{role}}")],
                unit="percentunit",
                help="Drawing time of the replicas of a role, over all their time.",
            ),
            lines(
                "Images waiting",
                [Query(_now(metrics.QUEUED, "role"), "{{role}}"), Query(_now(metrics.IN_FLIGHT), "in flight")],
                unit="short",
                help="In the queues of the replicas by role, and admitted in all.",
            ),
            lines(
                "Queue time by role", _by_role(metrics.QUEUE_SECONDS), unit="s", help="Before an image's first step."
            ),
            lines(
                "Service time by role",
                _by_role(metrics.SERVICE_SECONDS),
                unit="s",
                help="From an image's first step to the finished picture.",
            ),
            lines(
                "Batch size by role",
                [
                    Query(_quantile(0.5, metrics.BATCH_SIZE, "role"), "{{role}} p50"),
                    Query(_now(metrics.PLAN_BATCH_SIZE, "role"), "{{role}} allowed"),
                ],
                unit="short",
                help="Images that were drawn together, and the most that the plan allows.",
            ),
            lines(
                "Denoising steps",
                [Query(_rate(metrics.STEPS, by="role"), "{{role}}")],
                unit="short",
                stacked=True,
                help="Steps per second: what the GPUs are paid for.",
            ),
            lines(
                "Sent again",
                _each(metrics.RETRIES, "cause", ("replica_lost", "role_changed")),
                unit="reqps",
                help="Images whose replica died, or changed its role before they began.",
            ),
            lines(
                "What workers could not do",
                [
                    Query(_or_zero(_rate(metrics.WORKER_FAILURES, '{code!="role_changed"}')), "images and states"),
                    Query(_or_zero(_rate(metrics.FAILED)), "images without an answer"),
                ],
                unit="reqps",
                help="By all codes; `sum by (code) (rate(ray_weir_worker_failures_total[5m]))` tells them apart.",
            ),
        ],
    )


def cache() -> dict[str, Any]:
    outcomes = ("read", "written", "absent", "failed", "write_failed", "refused")
    return _dashboard(
        "cache",
        "Weir: Cache",
        "What other prompts' states save, what it costs to look for them, and how the store is.",
        [
            row("What it saves"),
            lines(
                "Requests by K",
                [Query(_rate(metrics.SERVED, by="k"), "K = {{k}}")],
                unit="reqps",
                width=8,
                stacked=True,
                help="The step at which the heavy run began: K steps were not run. 0 is a miss, or a light answer.",
            ),
            lines(
                "Hit share and steps saved",
                [
                    Query("weir:hit:ratio_rate1m", "hit share"),
                    Query("weir:steps_saved:ratio_rate1m", "heavy steps saved"),
                ],
                unit="percentunit",
                width=8,
                most=1,
                help="Of the requests that asked the cache; and of the heavy steps that would have run without it.",
            ),
            spread(
                "Similarity of the nearest prompt",
                _name(metrics.SIMILARITY),
                unit="short",
                width=8,
                help="Cosine of the prompts' embeddings; the selector's thresholds say how many steps that is worth.",
            ),
            row("What it costs"),
            lines(
                "Time of a lookup",
                _quantiles(metrics.LOOKUP_SECONDS),
                unit="s",
                width=8,
                help="In the cache: waiting for its thread, encoding the prompt, searching, choosing.",
            ),
            lines(
                "Wait for a state",
                _quantiles(metrics.FETCH_SECONDS),
                unit="s",
                width=8,
                help="By the worker, whether it came or not; cache.fetch_s is the longest.",
            ),
            lines(
                "Lookups",
                [
                    Query(_rate(metrics.LOOKUPS), "answered"),
                    *_each(metrics.CACHE_UNANSWERED, "reason", ("timeout", "resting", "error")),
                ],
                unit="reqps",
                width=8,
                help="An unanswered lookup is a miss. Resting: the cache failed several times and is left alone.",
            ),
            row("What it holds"),
            lines(
                "Bytes",
                [Query(_now(metrics.CACHE_BYTES), "states"), Query(_now(metrics.CACHE_BUDGET_BYTES), "budget")],
                unit="bytes",
                width=8,
                help="Of the states in the store, and what they may have.",
            ),
            lines(
                "Prompts and states",
                [Query(_now(metrics.CACHE_ENTRIES), "prompts"), Query(_now(metrics.CACHE_STATES), "states")],
                unit="short",
                width=8,
                help="A prompt keeps several states, one for each K.",
            ),
            lines(
                "Taken in and evicted",
                [
                    Query(_or_zero(_rate(metrics.INSERTED)), "taken in"),
                    Query(_or_zero(_rate(metrics.EVICTED)), "evicted"),
                ],
                unit="short",
                width=8,
                help="States per second.",
            ),
            lines(
                "Store calls",
                _each(metrics.STORE_CALLS, "outcome", outcomes),
                unit="reqps",
                width=8,
                help="By the cache and all workers. Refused: not proven to be ours. Absent: evicted meanwhile.",
            ),
            lines(
                "Breaker",
                [Query(_now(metrics.BREAKER_OPEN, "side"), "{{side}}")],
                unit="short",
                width=8,
                most=1,
                steps=True,
                help="1 while a process does not ask the store, for it failed several times in a row.",
            ),
            lines(
                "What kept it from helping",
                _each(
                    metrics.TROUBLES,
                    "reason",
                    ("state_not_used", "state_lost", "store_failed", "captured_not_there", "never_finished"),
                ),
                unit="reqps",
                width=8,
                help="Each costs speed and nothing else.",
            ),
        ],
    )


def controller() -> dict[str, Any]:
    return _dashboard(
        "controller",
        "Weir: Controller",
        "What the controller expects, what it decides, and whether it is there.",
        [
            lines(
                "Demand and forecast",
                [
                    Query(_rate(metrics.ASKED), "demand"),
                    Query(_now(metrics.FORECAST), "forecast"),
                    Query(_now(metrics.PLANNED_SHED), "to be shed"),
                ],
                unit="reqps",
                help="The forecast has head-room in it. What is to be shed found no GPUs.",
            ),
            lines(
                "Admission limit",
                [
                    Query(f"{_now(metrics.PLAN_ADMITTED)} >= 0 or weir:capacity:rps", "limit"),
                    Query(_rate(metrics.ADMITTED), "admitted"),
                    Query(_or_zero(_rate(metrics.REFUSED)), "refused"),
                ],
                unit="reqps",
                help="Where the plan admits all, the capacity stands for the limit.",
            ),
            lines(
                "Replicas that the plan gives a role",
                [
                    Query(_now(metrics.PLAN_REPLICAS, "role"), "{{role}}"),
                    Query(_now(metrics.REPLICAS), "alive"),
                ],
                unit="short",
                steps=True,
                help="And how many are alive, as the controller sees them.",
            ),
            lines(
                "Threshold",
                [
                    Query(_now(metrics.PLAN_THRESHOLD), "threshold"),
                    Query(_now(metrics.PLANNED_DEFERRAL), "planned deferral"),
                    Query("weir:deferral:ratio_rate1m", "deferred"),
                ],
                unit="short",
                most=1,
                help="The threshold moves so that the planned share is deferred.",
            ),
            lines(
                "Steps of a heavy run",
                [Query(_now(metrics.PLAN_HEAVY_STEPS), "from noise")],
                unit="short",
                steps=True,
                help="Fewer under load, of the lengths whose quality was measured. 0: the variant's own number.",
            ),
            lines(
                "Plan version",
                [Query(_now(metrics.PLAN_VERSION), "version")],
                unit="short",
                least=None,
                steps=True,
                help="Of the plan in force.",
            ),
            lines(
                "Plan age and silence",
                [
                    Query(_now(metrics.PLAN_AGE), "plan age"),
                    Query(_now(metrics.CONTROLLER_SILENT), "controller silent"),
                ],
                unit="s",
                help="A plan may grow old while nothing changes; a controller that does not look is dead.",
            ),
            lines(
                "Time to solve",
                _quantiles(metrics.SOLVE_SECONDS),
                unit="s",
                help="Building, solving, checking the allocation problem.",
            ),
            lines(
                "Solutions by status",
                _each(metrics.SOLVES, "status", ("optimal", "feasible", "relaxed", "lightest")),
                unit="short",
                stacked=True,
                help="Per second. Feasible: the time limit struck. Relaxed: on a coarser grid. Lightest: no solver "
                "answered.",
            ),
            lines(
                "Plans and role changes",
                [
                    Query(_or_zero(_rate(metrics.PLANS)), "plans"),
                    Query(_or_zero(_rate(metrics.ROLE_FLIPS)), "replicas that change role"),
                ],
                unit="short",
                help="Per second.",
            ),
            lines(
                "Measured over profiled batch time",
                [Query(_now(metrics.LATENCY_FACTOR, "role"), "{{role}}")],
                unit="short",
                help="Above 1 the devices are slower than the profile says; plans are made with the measured times.",
            ),
            lines(
                "Failures of the controller",
                [Query(_or_zero(_rate(metrics.FAILURES)), "seconds that failed")],
                unit="short",
                width=24,
                height=6,
                help="A second that fails changes nothing: the plan in force stays.",
            ),
        ],
    )


DASHBOARDS = (overview, cascade, cache, controller)


def _dashboard(name: str, title: str, about: str, panels: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "uid": f"weir-{name}",
        "title": title,
        "description": about,
        "tags": ["weir"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Weir", "value": "weir"},
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                    "options": [],
                    "refresh": 1,
                    "regex": "",
                }
            ]
        },
        "links": [
            {
                "type": "dashboards",
                "title": "Weir",
                "tags": ["weir"],
                "icon": "external link",
                "tooltip": "",
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "annotations": {"list": []},
        "panels": placed(panels),
    }


def files() -> dict[Path, str]:
    """Every file and what has to be in it."""
    made = (make() for make in DASHBOARDS)
    return {FOLDER / f"{d['uid'].removeprefix('weir-')}.json": json.dumps(d, indent=1) + "\n" for d in made}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()

"""Overview: whether the promise is kept, at which quality, and what the replicas do for it."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import WINDOW, now, or_zero, quantiles, rate
from deploy.monitoring.panels import Query, lines, stat
from weir import metrics


def overview() -> dict[str, Any]:
    late = 'ray_weir_violations_total{kind="%s"}'
    return dashboard(
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
                    Query(rate(metrics.ASKED), "demand"),
                    Query(rate(metrics.ADMITTED), "admitted"),
                    Query("weir:capacity:rps", "capacity"),
                    Query(or_zero(now(metrics.FORECAST)), "planned for"),
                ],
                unit="reqps",
                help="What is asked for, what is let in, what the plan was made for, and what its replicas can carry "
                "if nothing is deferred.",
            ),
            lines(
                "Replicas by role",
                [Query(now(metrics.REPLICAS_READY, "role"), "{{role}}")],
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
                [*quantiles(metrics.LATENCY), Query(now(metrics.DEADLINE), "deadline")],
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
                [Query(rate(metrics.ANSWERED, by="path"), "{{path}}")],
                unit="reqps",
                stacked=True,
                help="Light: good enough. Light-deadline: deferred, but a heavy image would be late. Heavy: drawn from "
                "noise. Cache: gone on from another prompt's state.",
            ),
        ],
    )

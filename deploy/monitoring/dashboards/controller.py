"""Controller: what it expects, what it decides, and whether it is there."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import each, now, or_zero, quantiles, rate
from deploy.monitoring.panels import Query, lines
from weir import metrics


def controller() -> dict[str, Any]:
    return dashboard(
        "controller",
        "Weir: Controller",
        "What the controller expects, what it decides, and whether it is there.",
        [
            lines(
                "Demand and forecast",
                [
                    Query(rate(metrics.ASKED), "demand"),
                    Query(now(metrics.FORECAST), "forecast"),
                    Query(now(metrics.PLANNED_SHED), "to be shed"),
                ],
                unit="reqps",
                help="The forecast has head-room in it. What is to be shed found no GPUs.",
            ),
            lines(
                "Admission limit",
                [
                    Query(f"{now(metrics.PLAN_ADMITTED)} >= 0 or weir:capacity:rps", "limit"),
                    Query(rate(metrics.ADMITTED), "admitted"),
                    Query(or_zero(rate(metrics.REFUSED)), "refused"),
                ],
                unit="reqps",
                help="Where the plan admits all, the capacity stands for the limit.",
            ),
            lines(
                "Replicas that the plan gives a role",
                [
                    Query(now(metrics.PLAN_REPLICAS, "role"), "{{role}}"),
                    Query(now(metrics.REPLICAS), "alive"),
                ],
                unit="short",
                steps=True,
                help="And how many are alive, as the controller sees them.",
            ),
            lines(
                "Threshold",
                [
                    Query(now(metrics.PLAN_THRESHOLD), "threshold"),
                    Query(now(metrics.PLANNED_DEFERRAL), "planned deferral"),
                    Query("weir:deferral:ratio_rate1m", "deferred"),
                ],
                unit="short",
                most=1,
                help="The threshold moves so that the planned share is deferred.",
            ),
            lines(
                "Steps of a heavy run",
                [Query(now(metrics.PLAN_HEAVY_STEPS), "from noise")],
                unit="short",
                steps=True,
                help="Fewer under load, of the lengths whose quality was measured. 0: the variant's own number.",
            ),
            lines(
                "Plan version",
                [Query(now(metrics.PLAN_VERSION), "version"), Query(now(metrics.PLAN_LIGHT), "light variant")],
                unit="short",
                least=None,
                steps=True,
                help="Of the plan in force; the light variant that it has in use, 0 for the family's own.",
            ),
            lines(
                "Plan age and silence",
                [
                    Query(now(metrics.PLAN_AGE), "plan age"),
                    Query(now(metrics.CONTROLLER_SILENT), "controller silent"),
                ],
                unit="s",
                help="A plan may grow old while nothing changes; a controller that does not look is dead.",
            ),
            lines(
                "Time to solve",
                quantiles(metrics.SOLVE_SECONDS),
                unit="s",
                help="Building, solving, checking the allocation problem.",
            ),
            lines(
                "Solutions by status",
                each(metrics.SOLVES, "status", ("optimal", "feasible", "relaxed", "lightest")),
                unit="short",
                stacked=True,
                help="Per second. Feasible: the time limit struck. Relaxed: on a coarser grid. Lightest: no solver "
                "answered.",
            ),
            lines(
                "Plans and role changes",
                [
                    Query(or_zero(rate(metrics.PLANS)), "plans"),
                    Query(or_zero(rate(metrics.ROLE_FLIPS)), "replicas that change role"),
                    Query(or_zero(rate(metrics.SHADOW_SAMPLES)), "shadow samples"),
                    Query(or_zero(rate(metrics.LEVELS_REFITTED)), "level heads fitted again"),
                ],
                unit="short",
                help="Per second.",
            ),
            lines(
                "Measured over profiled batch time",
                [Query(now(metrics.LATENCY_FACTOR, "role"), "{{role}}")],
                unit="short",
                help="Above 1 the devices are slower than the profile says; plans are made with the measured times.",
            ),
            lines(
                "Failures of the controller",
                [Query(or_zero(rate(metrics.FAILURES)), "seconds that failed")],
                unit="short",
                help="A second that fails changes nothing: the plan in force stays.",
            ),
        ],
    )

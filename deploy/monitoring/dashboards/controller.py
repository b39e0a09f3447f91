"""Controller: its forecast, its decisions, and whether it runs."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import each, now, or_zero, quantiles, rate
from deploy.monitoring.panels import Query, timeseries
from weir import metrics


def controller() -> dict[str, Any]:
    return dashboard(
        "controller",
        "Weir: Controller",
        "The forecast of the controller, its decisions, and whether it runs.",
        [*_demand(), *_decisions(), *_health()],
    )


def _demand() -> list[dict[str, Any]]:
    """What the controller foresees, and what it lets in."""
    return [
        timeseries(
            "Demand and forecast",
            [
                Query(rate(metrics.ASKED), "demand"),
                Query(now(metrics.FORECAST), "forecast"),
                Query(now(metrics.PLANNED_SHED), "planned to be refused"),
            ],
            unit="reqps",
            help="The forecast includes headroom. For demand that is planned to be refused there are no GPUs.",
        ),
        timeseries(
            "Admission limit",
            [
                Query(f"{now(metrics.PLAN_ADMITTED)} >= 0 or weir:capacity:rps", "limit"),
                Query(rate(metrics.ADMITTED), "admitted"),
                Query(or_zero(rate(metrics.REFUSED)), "refused"),
            ],
            unit="reqps",
            help="Where the plan has no limit, the curve shows the capacity.",
        ),
    ]


def _decisions() -> list[dict[str, Any]]:
    """What the controller decides."""
    return [
        timeseries(
            "Planned replicas by role",
            [
                Query(now(metrics.PLAN_REPLICAS, "role"), "{{role}}"),
                Query(now(metrics.REPLICAS), "alive"),
                Query(now(metrics.DRAINED), "drained"),
            ],
            unit="short",
            style="steps",
            help="Replicas that the plan assigns to each role, live replicas as counted by the controller, and those "
            "that an operator has drained.",
        ),
        timeseries(
            "Threshold",
            [
                Query(now(metrics.PLAN_THRESHOLD), "threshold"),
                Query(now(metrics.PLANNED_DEFERRAL), "planned deferral"),
                Query("weir:deferral:ratio_rate1m", "deferred"),
                Query(now(metrics.PINNED), "pinned"),
            ],
            unit="short",
            limits=(0, 1),
            help="The controller sets the threshold so that the planned share is deferred. Pinned is 1 while an "
            "operator's pin holds the plan or a part of it.",
        ),
        timeseries(
            "Steps of a heavy run",
            [Query(now(metrics.PLAN_HEAVY_STEPS), "from noise")],
            unit="short",
            style="steps",
            help="Fewer under load, out of the numbers whose quality was measured. 0: the variant's own number.",
        ),
        timeseries(
            "Plan version",
            [Query(now(metrics.PLAN_VERSION), "version"), Query(now(metrics.PLAN_LIGHT), "first variant")],
            unit="short",
            limits=(None, None),
            style="steps",
            help="Version of the current plan, and the position in the ladder of the first variant that it uses.",
        ),
    ]


def _health() -> list[dict[str, Any]]:
    """Whether it runs, and how fast."""
    return [
        timeseries(
            "Plan age and controller silence",
            [
                Query(now(metrics.PLAN_AGE), "plan age"),
                Query(now(metrics.CONTROLLER_SILENT), "controller silent"),
            ],
            unit="s",
            help="A plan may be old when demand does not change. A controller that is silent has stopped working.",
        ),
        timeseries(
            "Clock skew",
            [Query(now(metrics.CLOCK_SKEW), "largest difference")],
            unit="s",
            help="Largest difference between the wall clock of a replica's host and the load balancer's.",
        ),
        timeseries(
            "Time to solve",
            quantiles(metrics.SOLVE_SECONDS),
            unit="s",
            help="Time to build, solve and check the allocation problem.",
        ),
        timeseries(
            "Solutions by status",
            each(metrics.SOLVES, "status", ("optimal", "feasible", "relaxed", "lightest")),
            unit="short",
            style="stacked",
            help="Solutions per second. Feasible: the time limit was reached. Relaxed: solved on a coarser grid. "
            "Lightest: no solver answered.",
        ),
        timeseries(
            "Plans and role changes",
            [
                Query(or_zero(rate(metrics.PLANS)), "plans"),
                Query(or_zero(rate(metrics.ROLE_FLIPS)), "role changes"),
                Query(or_zero(rate(metrics.SHADOW_SAMPLES)), "shadow samples"),
                Query(or_zero(rate(metrics.LEVELS_REFITTED)), "fitted level heads"),
                Query(or_zero(rate(metrics.ADMIN_ACTIONS)), "actions of operators"),
            ],
            unit="short",
            help="Events per second.",
        ),
        timeseries(
            "Measured over profiled batch time",
            [Query(now(metrics.LATENCY_FACTOR, "role"), "{{role}}")],
            unit="short",
            help="Above 1 the devices are slower than their profile; plans use the measured times.",
        ),
        timeseries(
            "Failures of the controller",
            [Query(or_zero(rate(metrics.FAILURES)), "failed seconds")],
            unit="short",
            help="A failed second changes nothing: the current plan stays in force.",
        ),
    ]

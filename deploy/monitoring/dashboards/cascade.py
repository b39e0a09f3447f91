"""Cascade: light images, their judge, and deferred images; queues and batches of the replicas."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import by_role, each, name, now, or_zero, quantile, rate
from deploy.monitoring.panels import Query, heatmap, row, timeseries
from weir import metrics


def cascade() -> dict[str, Any]:
    return dashboard(
        "cascade",
        "Weir: Cascade",
        "Light images, their judge, and deferred images; queues and batches of the replicas.",
        [*_judge(), *_replicas()],
    )


def _judge() -> list[dict[str, Any]]:
    """The judge, and what it defers."""
    return [
        row("Judge"),
        heatmap(
            "Confidence of light images",
            name(metrics.CONFIDENCE),
            unit="short",
            help="Confidence of the discriminator; images below the threshold are deferred to the heavy variant.",
        ),
        timeseries(
            "Threshold and confidence",
            [
                Query(now(metrics.PLAN_THRESHOLD), "threshold"),
                Query(quantile(0.25, metrics.CONFIDENCE), "confidence p25"),
                Query(quantile(0.5, metrics.CONFIDENCE), "confidence p50"),
                Query(quantile(0.75, metrics.CONFIDENCE), "confidence p75"),
            ],
            unit="short",
            limits=(0, 1),
            help="A threshold at the median of the confidences defers half of the images.",
        ),
        timeseries(
            "Deferred share",
            [
                Query("weir:deferral:ratio_rate1m", "deferred"),
                Query(or_zero(now(metrics.PLANNED_DEFERRAL)), "planned"),
            ],
            unit="percentunit",
            limits=(0, 1),
            help="Share of light images below the threshold, and the share that the plan was made for.",
        ),
        timeseries(
            "Late heavy images and redraws",
            [
                Query(or_zero(rate(metrics.ANSWERED, '{path="light-deadline"}')), "light-deadline"),
                Query(or_zero(rate(metrics.REDRAWN)), "redraws"),
            ],
            unit="reqps",
            help="Deferred images whose answer is the light image, because a heavy one would have missed the "
            "deadline; and heavy images that were generated again because the discriminator doubted them.",
        ),
    ]


def _replicas() -> list[dict[str, Any]]:
    """Queues, batches and failures of the replicas."""
    return [
        row("Replicas"),
        timeseries(
            "Utilisation by role",
            [Query("weir:utilisation:ratio_rate1m", "{{role}}")],
            unit="percentunit",
            help="Share of time that the replicas of a role spend on generation.",
        ),
        timeseries(
            "Images waiting",
            [Query(now(metrics.QUEUED, "role"), "{{role}}"), Query(now(metrics.IN_FLIGHT), "in flight")],
            unit="short",
            help="Images in the queues of the replicas, by role, and all admitted images without an answer.",
        ),
        timeseries(
            "Queue time by role",
            by_role(metrics.QUEUE_SECONDS),
            unit="s",
            help="Time before an image's first step.",
        ),
        timeseries(
            "Service time by role",
            by_role(metrics.SERVICE_SECONDS),
            unit="s",
            help="Time from an image's first step to the finished image.",
        ),
        timeseries(
            "Batch size by role",
            [
                Query(quantile(0.5, metrics.BATCH_SIZE, "role"), "{{role}} p50"),
                Query(now(metrics.PLAN_BATCH_SIZE, "role"), "{{role}} allowed"),
            ],
            unit="short",
            help="Images that were generated together, and the largest batch size that the plan allows.",
        ),
        timeseries(
            "Denoising steps",
            [Query(rate(metrics.STEPS, by="role"), "{{role}}")],
            unit="short",
            style="stacked",
            help="Denoising steps per second, by role.",
        ),
        timeseries(
            "Retries",
            each(metrics.RETRIES, "cause", ("replica_lost", "role_changed", "failed")),
            unit="reqps",
            help="Images that were sent to another replica because the first one died, failed or changed its role.",
        ),
        timeseries(
            "Failures of workers",
            [
                Query(or_zero(rate(metrics.WORKER_FAILURES, '{code!="role_changed"}')), "images and states"),
                Query(or_zero(rate(metrics.FAILED)), "images without an answer"),
            ],
            unit="reqps",
            help="All codes together; `sum by (code) (rate(ray_weir_worker_failures_total[5m]))` separates them.",
        ),
    ]

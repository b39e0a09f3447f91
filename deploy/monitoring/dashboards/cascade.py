"""Cascade: light images, their judge, and the heavy ones that follow; queues and batches at the replicas."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import by_role, each, name, now, or_zero, quantile, rate
from deploy.monitoring.panels import Query, lines, row, spread
from weir import metrics


def cascade() -> dict[str, Any]:
    return dashboard(
        "cascade",
        "Weir: Cascade",
        "Light images, their judge, and the heavy ones that follow; queues and batches at the replicas.",
        [
            row("The judge"),
            spread(
                "Confidence of light images",
                name(metrics.CONFIDENCE),
                unit="short",
                help="The discriminator's confidence; those below the threshold are drawn again, heavy.",
            ),
            lines(
                "Threshold and confidence",
                [
                    Query(now(metrics.PLAN_THRESHOLD), "threshold"),
                    Query(quantile(0.25, metrics.CONFIDENCE), "confidence p25"),
                    Query(quantile(0.5, metrics.CONFIDENCE), "confidence p50"),
                    Query(quantile(0.75, metrics.CONFIDENCE), "confidence p75"),
                ],
                unit="short",
                most=1,
                help="A threshold that crosses the middle of the confidences defers half of the images.",
            ),
            lines(
                "Deferred share",
                [
                    Query("weir:deferral:ratio_rate1m", "deferred"),
                    Query(or_zero(now(metrics.PLANNED_DEFERRAL)), "planned"),
                ],
                unit="percentunit",
                most=1,
                help="Light images below the threshold, beside the share that the plan was made for.",
            ),
            lines(
                "Heavy images too late, and drawn again",
                [
                    Query(or_zero(rate(metrics.ANSWERED, '{path="light-deadline"}')), "light-deadline"),
                    Query(or_zero(rate(metrics.REDRAWN)), "drawn again"),
                ],
                unit="reqps",
                help="Deferred images that were answered with the light one, for the heavy would have missed the "
                "deadline; and heavy ones that were doubted, and drawn once more in the time that was left.",
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
                [Query(now(metrics.QUEUED, "role"), "{{role}}"), Query(now(metrics.IN_FLIGHT), "in flight")],
                unit="short",
                help="In the queues of the replicas by role, and admitted in all.",
            ),
            lines("Queue time by role", by_role(metrics.QUEUE_SECONDS), unit="s", help="Before an image's first step."),
            lines(
                "Service time by role",
                by_role(metrics.SERVICE_SECONDS),
                unit="s",
                help="From an image's first step to the finished picture.",
            ),
            lines(
                "Batch size by role",
                [
                    Query(quantile(0.5, metrics.BATCH_SIZE, "role"), "{{role}} p50"),
                    Query(now(metrics.PLAN_BATCH_SIZE, "role"), "{{role}} allowed"),
                ],
                unit="short",
                help="Images that were drawn together, and the most that the plan allows.",
            ),
            lines(
                "Denoising steps",
                [Query(rate(metrics.STEPS, by="role"), "{{role}}")],
                unit="short",
                stacked=True,
                help="Steps per second: what the GPUs are paid for.",
            ),
            lines(
                "Sent again",
                each(metrics.RETRIES, "cause", ("replica_lost", "role_changed", "failed")),
                unit="reqps",
                help="Images whose replica died, or changed its role before they began.",
            ),
            lines(
                "What workers could not do",
                [
                    Query(or_zero(rate(metrics.WORKER_FAILURES, '{code!="role_changed"}')), "images and states"),
                    Query(or_zero(rate(metrics.FAILED)), "images without an answer"),
                ],
                unit="reqps",
                help="By all codes; `sum by (code) (rate(ray_weir_worker_failures_total[5m]))` tells them apart.",
            ),
        ],
    )

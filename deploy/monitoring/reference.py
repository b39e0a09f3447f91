"""Writes ``docs/metrics.md`` from ``weir/metrics.py``.

python -m deploy.monitoring.reference
"""

from __future__ import annotations

from pathlib import Path

from weir import metrics
from weir.metrics import Metric

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
#: Longer lists of label values are abbreviated.
MOST_VALUES = 8

_HEAD = """# Metrics

`python -m deploy.monitoring.reference` writes this page from `weir/metrics.py`; a test checks that it is current.

In Prometheus every name has the prefix `ray_`, because Ray's agents export the metrics of all processes of a node. Ray
adds labels of its own (`WorkerId`, `NodeAddress`, `SessionName`, …); take the sum or the maximum over them. Seconds are
wall time, and `rps` are images per second. A label has one of the values that are listed here, or `other`. Prompts,
ids, tenants and keys are never labels. Ray exports only the bucket counts of a histogram, so `_bucket` and `_count` are
exact, and `_sum` is an estimate from the middles of the buckets: use quantiles.

[Monitoring](monitoring.md) describes the dashboards and alerts.
"""

_SECTIONS = {
    "load_balancer": "Load balancer: demand, answers, cascade, replicas, and the current plan",
    "controller": "Controller: forecast and decisions",
    "deploy": "Shadow samples: recorded in the controller's process, where `cache.shadow` is set",
    "cache": "Cache",
    "cache, workers": "Store: recorded by the cache and by every worker",
    "workers": "Workers",
    "traces": "Replay: recorded by the client, with `weir replay --metrics-port` (without the prefix `ray_`)",
}


def page() -> str:
    """The whole page in Markdown."""
    parts = [_HEAD]
    for room, title in _SECTIONS.items():
        rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
        rows += [_row(metric) for metric in metrics.ALL if metric.room == room]
        parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = "<br>".join(f"`{label.name}`: {_values(label.values)}" for label in metric.labels)
    buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help}{buckets} |"


def _values(values: tuple[str, ...]) -> str:
    if len(values) <= MOST_VALUES:
        return ", ".join(values)
    if all(value.isdigit() for value in values):
        return f"{values[0]}…{values[-1]}"
    return "an error code of `weir/errors.py`"


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()

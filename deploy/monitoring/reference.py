"""Writes ``docs/metrics.md`` from ``weir/metrics.py``.

python -m deploy.monitoring.reference
"""

from __future__ import annotations

from pathlib import Path

from weir import metrics
from weir.metrics import Metric

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
#: More values than these are not listed.
MOST_VALUES = 8

_HEAD = """# Metrics

Written by `python -m deploy.monitoring.reference` from `weir/metrics.py`; a test keeps it current.

In Prometheus every name has `ray_` in front, for Ray's agents carry the metrics of all processes of a node, and Ray
adds labels of its own (`WorkerId`, `NodeAddress`, `SessionName`, …); sum or take the maximum over them. Seconds are
wall time, `rps` are images per second. A label has one of the values that are listed here or is `other`: prompts, ids,
tenants and keys are never labels. Ray passes histograms on as counts of buckets, so `_bucket` and `_count` are exact
and `_sum` is an estimate from the middles of the buckets: use quantiles.

`docs/monitoring.md` says how to look at them.
"""

_ROOMS = {
    "load_balancer": "Load balancer: demand, answers, cascade, replicas, the plan in force",
    "controller": "Controller: what it expects and decides",
    "deploy": "Shadow samples: beside the controller, where `cache.shadow` asks for them",
    "cache": "Cache",
    "cache, workers": "Store: in the cache and in every worker",
    "workers": "Workers",
    "traces": "Replay: what the client sees, where `weir replay --metrics-port` shows it (without `ray_` in front)",
}


def page() -> str:
    """The whole page, Markdown."""
    parts = [_HEAD]
    for room, title in _ROOMS.items():
        rows = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
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
    return "a code of `weir/errors.py`"


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()

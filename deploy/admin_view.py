"""Shows operators a running service: the plan in force, the pin, the replicas and the last actions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

#: Fields of ``GET /v1/admin/plan`` that are shown.
SHOWN = frozenset(("plan", "policy", "pin", "replicas", "adapters", "actions"))
#: Differences of clocks from here on are shown, seconds.
SHOWN_SKEW_S = 1.0
#: Number of actions that are shown.
MOST_ACTIONS = 5


def described(state: Mapping[str, Any]) -> Group:
    """The answer of ``GET /v1/admin/plan``; it fits in 80 columns."""
    plan = state["plan"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(justify="right", style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    rows = [
        (
            "plan",
            f"version {plan['version']} for {plan['age_s']:.0f} s, made by {plan['origin'] or 'the configuration'}",
        ),
        ("reason", plan["reason"] or "it is the configured one"),
        ("chain", " → ".join(plan["chain"])),
        ("replicas", _values(plan["replicas"])),
        ("thresholds", _values(plan["thresholds"]) or "none"),
        ("batch", _values(plan["batch"])),
        ("admits", "all" if plan["admitted_rps"] is None else f"{plan['admitted_rps']:.2f} requests/s"),
        ("policy", state["policy"]),
        *([("adapters", ", ".join(state["adapters"]))] if state["adapters"] else []),
        *rows_of(state),
    ]
    for name, value in rows:
        facts.add_row(name, Text(value))
    return Group(_replicas(state["replicas"]), facts)


def rows_of(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows about what operators changed: the pin, drained replicas, and the last actions."""
    rows = []
    if (pin := state["pin"]) is not None:
        parts = "; ".join(f"{name} {_values(pin[name])}" for name in ("replicas", "thresholds", "batch") if name in pin)
        rows.append(("pin", f"{parts or 'the whole plan'} for {pin['left_s']:.0f} s more, {pin['reason']}"))
    for it in state["replicas"]:
        if it["state"] == "drained":
            rows.append(("drained", f"{it['id']} of rank {it['rank']}, {it['in_flight']} images in flight"))
        if abs(skew_s := it.get("clock_skew_s", 0.0)) >= SHOWN_SKEW_S:
            ahead = "ahead of" if skew_s > 0 else "behind"
            rows.append(("clock", f"the host of {it['id']} is {abs(skew_s):.1f} s {ahead} the load balancer"))
    for it in state["actions"][:MOST_ACTIONS]:
        at = time.strftime("%H:%M:%S", time.localtime(it["at"]))
        until = "" if it["until"] is None else time.strftime(" until %H:%M:%S", time.localtime(it["until"]))
        rows.append(("action", f"{at} {it['who']}: {it['action']}, {it['what']}{until}"))
    return rows


def _replicas(replicas: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("replica", no_wrap=True)
    table.add_column("rank", justify="right")
    for name in ("role", "state"):
        table.add_column(name)
    table.add_column("in flight", justify="right")
    table.add_column("process", justify="right")
    for it in replicas:
        role = "-" if it["state"] == "drained" else it["role"]
        table.add_row(it["id"], str(it["rank"]), role, it["state"], str(it["in_flight"]), str(it["pid"] or "?"))
    return table


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())

"""What ``weir status`` shows: the state of a service with the load balancer's counts, as JSON or as a table."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from deploy.admin_view import SHOWN, rows_of
from deploy.api_client import ApiClient
from deploy.local import status as state_of
from deploy.state import FOLDER
from weir.errors import WeirError

#: Seconds to wait for the load balancer's counts.
TIMEOUT_S = 5.0
#: Fields of ``/v1/live`` that are shown.
_SHOWN = frozenset(
    [
        "reason",
        "policy",
        "pinned_until",
        "drained",
        "demand_rps",
        "arrivals",
        "in_flight",
        "late",
        "answered",
        "refused",
        "failed",
        "cache",
        "hits",
        "looked_up",
    ]
)


def status(name: str | None = None, *, key: str | None = None, folder: Path = FOLDER) -> dict[str, Any]:
    """The state of a service, with the response of ``/v1/live`` in ``live``, and of ``/v1/admin/plan`` in ``admin``;
    None where they need another key.

    Args:
        key: API key of the service, if it needs one.

    Raises:
        ServiceError: as :func:`deploy.local.status`.
    """
    state = state_of(name, folder=folder)
    live = admin = None
    if "replicas" in state:
        client = ApiClient(state["url"], key, TIMEOUT_S)
        with suppress(WeirError):
            live = client.call("GET", "/v1/live")
        with suppress(WeirError):
            admin = client.call("GET", "/v1/admin/plan")
    # A service of another version may answer with other fields.
    known = {"live": (live, _SHOWN), "admin": (admin, SHOWN)}
    return {**state, **{name: it if it and it.keys() >= shown else None for name, (it, shown) in known.items()}}


def described(state: dict[str, Any]) -> Group:
    """The state for people; it fits in 80 columns."""
    ready = "ready" if state["healthy"] else "not ready"
    title = Text.assemble((state["name"], "bold"), f" is {ready} at {state['url']}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(justify="right", style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(state):
        facts.add_row(name, Text(value))
    return Group(title, _replicas(state), facts) if "replicas" in state else Group(title, facts)


def _replicas(state: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("role")
    for column in ("planned", "ready", "not ready", "queued images"):
        table.add_column(column, justify="right")
    queued = (state["live"] or {}).get("queued", {})
    for role, count in state["replicas"].items():
        missing = max(0, count["planned"] - count["ready"])
        table.add_row(role, *map(str, (count["planned"], count["ready"], missing, queued.get(role, "?"))))
    return table


def _facts(state: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, in the order in which they are shown."""
    facts = [("pending", ", ".join(state["pending"]))] if state["pending"] else []
    if plan := state.get("plan"):
        text = f"version {plan['version']} for {plan['age_s']:.0f} s, threshold {plan['threshold']:.3f}"
        facts.append(("plan", text))
    live = state["live"]
    if live is not None:
        facts += [("reason", live["reason"])] if live["reason"] else []
    facts.append(("policy", state["policy"] if live is None else live["policy"]))
    facts += _controls(state)
    if live is not None:
        facts += [("demand", _demand(live)), ("late", _late(live)), ("cache", _cache(live))]
    elif "replicas" in state:
        facts.append(("demand", "unknown: /v1/live needs the key of a client in WEIR_API_KEY"))
    places = (("config", state["config"]), ("logs", state["logs"]), ("targets", state["targets"]))
    facts += [(name, _short(path)) for name, path in places if path]
    return [*facts, ("dashboard", state["dashboard"]), ("process", str(state["pid"]))]


def _controls(state: dict[str, Any]) -> list[tuple[str, str]]:
    """What the operator has changed. Only keys with the scope admin see who did it."""
    live, admin = state["live"], state["admin"]
    if admin is not None:
        return rows_of(admin)
    rows = []
    if live is not None and live["pinned_until"] is not None:
        rows.append(("pin", time.strftime("until %H:%M:%S", time.localtime(live["pinned_until"]))))
    if live is not None and live["drained"]:
        rows.append(("drained", f"{live['drained']} replicas"))
    return rows


def _demand(live: dict[str, Any]) -> str:
    rate = live["demand_rps"]
    shown = "unknown yet" if rate is None else f"{rate:.2f} images/s in the last minute"
    return f"{shown}, {live['arrivals']} since the start, {live['in_flight']} in flight"


def _late(live: dict[str, Any]) -> str:
    return f"{live['late']} of {live['answered']} answered images; {live['refused']} refused, {live['failed']} failed"


def _cache(live: dict[str, Any]) -> str:
    if not live["cache"]:
        return "off"
    hits, lookups = live["hits"], live["looked_up"]
    return f"{hits} of {lookups} lookups hit" + (f" ({hits / lookups:.0%})" if lookups else "")


def _short(path: str) -> str:
    """A path relative to the working directory, if it is below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path

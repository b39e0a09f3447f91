"""Decides which replicas may be drained, and which replicas take work while some are drained. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from weir.errors import Conflict, NotFound


def check_drain(replica: str, known: Collection[str], drained: Collection[str], *, force: bool = False) -> None:
    """Checks that a replica may be drained.

    Args:
        known: ids of all replicas.
        drained: ids of the drained ones.
        force: whether the last replica that takes work may be drained.

    Raises:
        NotFound: there is no such replica; the message lists the replicas.
        Conflict: it is the last replica that takes work.
    """
    check_known(replica, known)
    if replica not in drained and not force and not set(known) - {*drained, replica}:
        raise Conflict(
            f"{replica} is the last replica that takes work: without it every request is answered with 503; return "
            "another replica first, or set force (`--force`)"
        )


def check_known(replica: str, known: Collection[str]) -> None:
    """Checks that there is a replica of this id.

    Raises:
        NotFound: there is none; the message lists the replicas.
    """
    if replica not in known:
        shown = ", ".join(sorted(known)) or "none; try again when they have started"
        raise NotFound(f"there is no replica {replica[:64]!r}; the replicas are: {shown}", param="id")


def working(described: Iterable[Mapping[str, Any]], drained: Collection[str]) -> list[Mapping[str, Any]]:
    """The descriptions of the replicas that take work. The dispatcher and the controller learn of no others."""
    return [it for it in described if it["replica"] not in drained]


def replaced(
    known: Mapping[str, Mapping[str, Any]], now: Iterable[Mapping[str, Any]], size: int
) -> dict[str, Mapping[str, Any]]:
    """The last description of every replica, by id, after a probe.

    A replica that is missing from the probe is kept until another one has its rank: Serve lists none for about a second
    while it applies a plan. It is not kept if the pool has fewer replicas now.

    Args:
        size: number of replicas of the plan in force.
    """
    there = {it["replica"]: it for it in now}
    taken = {it["rank"] for it in there.values()}
    gone = [replica for replica, it in known.items() if it["rank"] in taken or it["rank"] >= size]
    return {replica: it for replica, it in known.items() if replica not in gone} | there

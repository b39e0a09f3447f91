"""Detects replicas that stopped answering, and decides what happens to them and to their images. Pure.

Serve checks the health of a replica every few seconds, but not while the replica takes in a plan. A replica that
freezes at that moment is neither routed to nor health-checked any more, and Serve would never replace it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: A replica that missed this many probes in a row gets no images until it answers again.
MISSED_PROBES = 3
#: Seconds that an image waits for a replica that Serve no longer routes to. Such a replica finishes what it has begun.
UNROUTED_S = 10.0


class Assessment(NamedTuple):
    """The result of one probe of all replicas.

    Attributes:
        available: descriptions of the replicas that images may be sent to.
        lost: replicas whose images have to be generated elsewhere.
        to_end: last descriptions of the replicas to kill, so that Serve replaces them; each is listed once.
    """

    available: list[Mapping[str, Any]]
    lost: set[str]
    to_end: list[Mapping[str, Any]]


@dataclass(slots=True)
class _Missing:
    """A replica that does not answer, and its last description."""

    described: Mapping[str, Any]
    since: float
    missed: int = 0
    ended: bool = False


class FailureDetector:
    """Keeps track of the replicas that do not answer.

    Args:
        end_s: a replica that has not answered for this long is killed. It has to be longer than a replica that is being
            stopped may take to finish what it has begun.
    """

    def __init__(self, end_s: float):
        self._end_s = end_s
        self._answering: dict[str, Mapping[str, Any]] = {}
        self._missing: dict[str, _Missing] = {}

    @property
    def pending(self) -> bool:
        """Whether the next probe may declare a replica lost."""
        return any(0 < it.missed < MISSED_PROBES for it in self._missing.values())

    def assess(self, described: Iterable[Mapping[str, Any]], now: float) -> Assessment:
        """Takes in one probe: the descriptions of all routed replicas; ``silent`` marks those that did not answer."""
        routed = {it["replica"]: it for it in described}
        answering = {replica: it for replica, it in routed.items() if not it.get("silent")}
        for replica, last in self._answering.items():
            self._missing.setdefault(replica, _Missing(last, now))
        self._answering = answering
        found = Assessment(list(answering.values()), set(), [])
        for replica, it in list(self._missing.items()):
            if replica in answering or (it.ended and replica not in routed):
                del self._missing[replica]
                continue
            it.missed = it.missed + 1 if replica in routed else 0
            if 0 < it.missed < MISSED_PROBES:
                found.available.append(routed[replica])
            elif it.missed or now - it.since >= UNROUTED_S:
                found.lost.add(replica)
            if now - it.since >= self._end_s and not it.ended:
                it.ended = True
                found.to_end.append(it.described)
        return found

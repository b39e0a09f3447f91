"""Replicas that were there and say nothing: when no image goes there, when none waits there, when they are ended. Pure.

Serve asks a replica for its health every few seconds, but not while it takes in a plan: should one freeze just then, it
is neither routed to nor looked after any more, and nothing would ever take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: A replica that has said nothing this many times in a row is out of the book until it speaks again.
SILENT_LOOKS = 3
#: One that Serve does not route to finishes what it has begun, but an image does not wait longer for it.
ABSENT_S = 10.0


class Look(NamedTuple):
    """What follows from one look at the replicas.

    Attributes:
        book: those that images may go to.
        lost: those whose images are to be drawn elsewhere.
        to_end: those that have to make room for others, as they last described themselves; each is named once.
    """

    book: list[Mapping[str, Any]]
    lost: set[str]
    to_end: list[Mapping[str, Any]]


@dataclass(slots=True)
class _Quiet:
    described: Mapping[str, Any]
    since: float
    looks: int = 0
    ended: bool = False


class FailureDetector:
    """Keeps who has fallen silent.

    Args:
        end_s: a replica that nobody has heard for so long is beyond hope. Longer than a replica may take that is
            told to stop and finishes what it has begun.
    """

    def __init__(self, end_s: float):
        self._end_s = end_s
        self._heard: dict[str, Mapping[str, Any]] = {}
        self._quiet: dict[str, _Quiet] = {}

    @property
    def pending(self) -> bool:
        """Whether the next look decides about somebody's images."""
        return any(0 < it.looks < SILENT_LOOKS for it in self._quiet.values())

    def look(self, described: Iterable[Mapping[str, Any]], now: float) -> Look:
        """Takes in one look: what every replica says that Serve routes to; one that did not answer has ``silent``."""
        looked = {it["replica"]: it for it in described}
        spoken = {replica: it for replica, it in looked.items() if not it.get("silent")}
        for replica, last in self._heard.items():
            self._quiet.setdefault(replica, _Quiet(last, now))
        self._heard = spoken
        found = Look(list(spoken.values()), set(), [])
        for replica, it in list(self._quiet.items()):
            if replica in spoken or (it.ended and replica not in looked):
                del self._quiet[replica]
                continue
            it.looks = it.looks + 1 if replica in looked else 0
            if 0 < it.looks < SILENT_LOOKS:
                found.book.append(looked[replica])
            elif it.looks or now - it.since >= ABSENT_S:
                found.lost.add(replica)
            if now - it.since >= self._end_s and not it.ended:
                it.ended = True
                found.to_end.append(it.described)
        return found

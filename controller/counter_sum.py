"""Adds up the counters of all load balancers of a service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from controller.counters import Counters

#: How far a load balancer was read: judged images, batches, fetches and verdicts.
Cursor = tuple[int, int, int, int]

#: Counts since the start of a load balancer, by themselves and by something.
_COUNTS = ("arrivals", "judged", "deferred", "batches_run", "late_answers", "late_deferred", "fetched", "verdicts")
_COUNTS_BY = ("reused", "found", "missed", "classes")
#: Samples since the last snapshot.
_SAMPLES = ("confidences", "batches", "levels", "fetches")


class CounterSum:
    """The sum of the counters of several load balancers. It never decreases, also when one of them ends.

    Names of load balancers are never reused: one that was started again has another name.
    """

    def __init__(self) -> None:
        self._last: dict[str, Counters] = {}
        self._counts: Counter[str] = Counter()
        self._counts_by: dict[str, Counter[Any]] = {name: Counter() for name in _COUNTS_BY}

    def cursors(self) -> dict[str, Cursor]:
        """How far each load balancer was read, by its name."""
        return {name: (it.judged, it.batches_run, it.fetched, it.verdicts) for name, it in self._last.items()}

    def add(self, snapshots: Mapping[str, Counters]) -> Counters:
        """Takes in a snapshot of each load balancer that answered, by name, and returns the sum.

        The plan and the operator's orders are those of the load balancer with the oldest plan, so that the controller
        sees when one of them lacks the newest. ``ranks`` are those that any of them reaches. ``queued`` is the largest,
        because every load balancer counts the images of all.

        Raises:
            ValueError: there is no snapshot.
        """
        now = list(snapshots.values())
        if not now:
            raise ValueError("no load balancer answered")
        for name, it in snapshots.items():
            before = self._last.get(name)
            for count in _COUNTS:
                self._counts[count] += getattr(it, count) - (getattr(before, count) if before else 0)
            for count, total in self._counts_by.items():
                total.update(getattr(it, count))
                total.subtract(getattr(before, count) if before else {})
        self._last |= snapshots
        summed: dict[str, Any] = {name: self._counts[name] for name in _COUNTS}
        summed |= {name: dict(total) for name, total in self._counts_by.items()}
        summed |= {name: tuple(chain.from_iterable(getattr(it, name) for it in now)) for name in _SAMPLES}
        return replace(
            min(now, key=lambda it: it.plan.version),
            **summed,
            ranks=tuple(sorted({rank for it in now for rank in it.ranks})),
            queued=_largest(it.queued for it in now),
            in_flight=sum(it.in_flight for it in now),
            deferred_in_flight=sum(it.deferred_in_flight for it in now),
            confidences_by_variant=_joined(it.confidences_by_variant for it in now),
        )


def _largest(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for part in parts:
        found |= Counter(part)
    return dict(found)


def _joined(parts: Iterable[Mapping[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for part in parts:
        for key, values in part.items():
            found[key] = found.get(key, ()) + values
    return found

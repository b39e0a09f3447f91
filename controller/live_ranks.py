"""Which ranks of the pool are there: a replica that Serve holds back for a moment is not gone."""

from __future__ import annotations

from collections.abc import Iterable

#: A rank that was not seen for so long is gone. Serve holds a replica back for about a second while it takes in a plan.
ABSENCE_S = 3.0


class LiveRanks:
    """Believes in a rank at once, and in its absence after :data:`ABSENCE_S`.

    A plan for the replicas that are left while the others take in the plan before would hold more of them back, and so
    bring about the next plan: role changes would never end.
    """

    def __init__(self) -> None:
        self._seen_at: dict[int, float] = {}

    def observe(self, ranks: Iterable[int], now_s: float) -> tuple[int, ...]:
        """Takes in the ranks seen now, and gives those that count as alive, ascending."""
        self._seen_at.update(dict.fromkeys(ranks, now_s))
        self._seen_at = {rank: at for rank, at in self._seen_at.items() if now_s - at < ABSENCE_S}
        return tuple(sorted(self._seen_at))

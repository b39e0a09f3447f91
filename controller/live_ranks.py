"""Detection of the live ranks of the pool, which tolerates the short absence of replicas that Serve updates."""

from __future__ import annotations

from collections.abc import Iterable

#: Seconds of absence after which a rank is dead. Serve lists no replica for about a second while it applies a plan.
ABSENCE_S = 3.0


class LiveRanks:
    """Tracks live ranks: a rank is alive at once when it is seen, and dead after an absence of :data:`ABSENCE_S`.

    Without the delay, replicas that apply a plan would count as dead, which would trigger the next plan, and role
    changes would never end.
    """

    def __init__(self) -> None:
        self._seen_at: dict[int, float] = {}

    def observe(self, ranks: Iterable[int], now_s: float) -> tuple[int, ...]:
        """Records the ranks seen now and returns the live ranks in ascending order."""
        self._seen_at.update(dict.fromkeys(ranks, now_s))
        self._seen_at = {rank: at for rank, at in self._seen_at.items() if now_s - at < ABSENCE_S}
        return tuple(sorted(self._seen_at))

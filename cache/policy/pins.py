"""States that are protected from eviction, because requests may still resume from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from cache.policy.eviction import StateKey


class Pins:
    """The protected states; one may be protected several times."""

    def __init__(self) -> None:
        self._counts: Counter[StateKey] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, state: object) -> bool:
        return state in self._counts

    def __iter__(self) -> Iterator[StateKey]:
        return iter(self._counts)

    def add(self, entry: str, ks: Iterable[int]) -> None:
        """Protects states from eviction until :meth:`remove`."""
        self._counts.update((entry, k) for k in ks)

    def remove(self, entry: str, ks: Iterable[int]) -> None:
        """Reverts one :meth:`add`."""
        for key in ((entry, k) for k in ks):
            self._counts[key] -= 1
            if self._counts[key] <= 0:
                del self._counts[key]

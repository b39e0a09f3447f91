"""Room that tenants share: when it is full, the tenant that takes most of it loses something. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Part(Generic[T]):
    """What one tenant has in the room, the oldest first."""

    useful: dict[T, None] = field(default_factory=dict)
    useless: dict[T, None] = field(default_factory=dict)
    size_bytes: int = 0

    def __len__(self) -> int:
        return len(self.useful) + len(self.useless)


class FairRoom(Generic[T]):
    """Items of tenants, bounded in number and bytes.

    A tenant that takes less than its share, which is the room divided by the tenants that are in it, loses nothing.
    """

    def __init__(self, most_items: int, most_bytes: int):
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._items: dict[T, tuple[str, int]] = {}  # tenant and size, the oldest first
        self._parts: dict[str, _Part[T]] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    @property
    def oldest(self) -> T | None:
        """The item that was added first; None in an empty room."""
        return next(iter(self._items), None)

    def add(self, tenant: str, item: T, size_bytes: int = 0, *, useless: bool = False) -> list[T]:
        """Adds an item; returns the items that had to leave for it, or the item itself if it is larger than the room.

        Args:
            useless: whether the item leaves before the tenant's others, whatever their age.
        """
        if size_bytes > self._most_bytes:
            return [item]
        part = self._parts.setdefault(tenant, _Part())
        (part.useless if useless else part.useful)[item] = None
        part.size_bytes += size_bytes
        self.size_bytes += size_bytes
        self._items[item] = tenant, size_bytes
        left = []
        while len(self._items) > self._most_items or self.size_bytes > self._most_bytes:
            largest = max(self._parts.values(), key=self._share)
            first = next(iter(largest.useless or largest.useful))
            self.remove(first)
            left.append(first)
        return left

    def remove(self, item: T) -> None:
        """Removes an item; does nothing if it is not in the room."""
        if item not in self._items:
            return
        tenant, size_bytes = self._items.pop(item)
        part = self._parts[tenant]
        part.useful.pop(item, None)
        part.useless.pop(item, None)
        part.size_bytes -= size_bytes
        self.size_bytes -= size_bytes
        if not part:
            del self._parts[tenant]

    def _share(self, part: _Part[T]) -> float:
        """The share of the room that a part takes, by the scarcer of number and bytes."""
        return max(len(part) / self._most_items, part.size_bytes / self._most_bytes)

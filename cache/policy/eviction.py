"""Which state leaves when the cache is full. Pure: no clock, no store.

The unit is one state: an entry (a prompt) at one K. A policy learns of every insertion and every use, and names one
victim at a time; a state that is being read is never named. All ties go to the state that was inserted first.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from weir.errors import ConfigError

#: An entry's name, and one of its K.
StateKey = tuple[str, int]


class EvictionPolicy(ABC):
    """Keeps the order in which states leave. Every state that was inserted and not removed is known to it."""

    @abstractmethod
    def insert(self, entry: str, sizes: Mapping[int, int]) -> None:
        """States of one entry came in: bytes by K. Those that are there already are replaced."""

    @abstractmethod
    def use(self, entry: str, k: int, wanted: int) -> None:
        """The state of ``k`` served a request that could have taken ``wanted`` ≥ ``k``."""

    @abstractmethod
    def victim(self, pinned: Container[StateKey] = ()) -> StateKey | None:
        """The next state to leave; None when nothing is there that is not pinned. It stays known until removed."""

    @abstractmethod
    def remove(self, entry: str, k: int) -> None:
        """A state is gone, evicted or otherwise. Unknown ones are ignored."""

    @abstractmethod
    def __len__(self) -> int:
        """States that are known."""


class _Queue:
    """A priority queue whose priorities change: the heap keeps stale pairs, which are skipped when they surface."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self._current: dict[Any, tuple[float, int]] = {}
        self._ticks = count()

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, item: object) -> bool:
        return item in self._current

    def put(self, item: Any, priority: float) -> None:
        """Puts an item in, or changes its priority; its place among equals is that of its first time."""
        known = self._current.get(item)
        tick = next(self._ticks) if known is None else known[1]
        if known is not None and known[0] == priority:
            return
        self._current[item] = (priority, tick)
        heapq.heappush(self._heap, (priority, tick, item))
        if len(self._heap) > 64 + 4 * len(self._current):  # mostly stale
            self._heap = [(p, t, i) for i, (p, t) in self._current.items()]
            heapq.heapify(self._heap)

    def drop(self, item: Any) -> None:
        self._current.pop(item, None)

    def first(self, skipped: Container[Any] = ()) -> tuple[Any, float] | None:
        """The item of the lowest priority that is not to be skipped; it stays."""
        aside = []
        found = None
        while self._heap:
            priority, tick, item = self._heap[0]
            if self._current.get(item) != (priority, tick):
                heapq.heappop(self._heap)
            elif item in skipped:
                aside.append(heapq.heappop(self._heap))
            else:
                found = (item, priority)
                break
        for each in aside:
            heapq.heappush(self._heap, each)
        return found


class _Scored(EvictionPolicy):
    """A policy that gives every state a score of its own; the lowest leaves first."""

    def __init__(self) -> None:
        self._queue = _Queue()
        self._uses: dict[StateKey, int] = {}
        self._now = count(1)

    @abstractmethod
    def _score(self, key: StateKey, uses: int) -> float: ...

    def insert(self, entry: str, sizes: Mapping[int, int]) -> None:
        for k in sizes:
            key = (entry, k)
            self._uses.setdefault(key, 0)
            self._queue.put(key, self._score(key, self._uses[key]))

    def use(self, entry: str, k: int, wanted: int) -> None:
        key = (entry, k)
        if key in self._uses:
            self._uses[key] += 1
            self._queue.put(key, self._score(key, self._uses[key]))

    def victim(self, pinned: Container[StateKey] = ()) -> StateKey | None:
        found = self._queue.first(pinned)
        return None if found is None else found[0]

    def remove(self, entry: str, k: int) -> None:
        self._uses.pop((entry, k), None)
        self._queue.drop((entry, k))

    def __len__(self) -> int:
        return len(self._queue)


class Fifo(_Scored):
    """First in, first out."""

    def _score(self, key: StateKey, uses: int) -> float:
        return 0.0


class Lru(_Scored):
    """Least recently used; insertion counts as a use."""

    def _score(self, key: StateKey, uses: int) -> float:
        return float(next(self._now))


class Lfu(_Scored):
    """Least frequently used."""

    def _score(self, key: StateKey, uses: int) -> float:
        return float(uses)


class Lcbfu(_Scored):
    """NIRVANA's least computationally beneficial and frequently used, as published: score f·K, f counted from 0."""

    def _score(self, key: StateKey, uses: int) -> float:
        return float(uses * key[1])


@dataclass(slots=True)
class _Known:
    """What Weir's policy knows of one entry: bytes by K, its own uses by wanted K, and how old they are."""

    sizes: dict[int, int] = field(default_factory=dict)
    uses: dict[int, float] = field(default_factory=dict)
    born: float = 0.0


class Weir(EvictionPolicy):
    """Evicts the state whose loss costs the fewest expected steps per byte.

    An entry without its state K still serves from the next lower one, so a state is worth only the steps between the
    two, for the requests that fall there. How often they do: the entry's own uses plus ``prior`` uses spread over K as
    the uses of all entries are. That is LCBFU with f started above 0, and with the hole rule in its score. Priorities
    age as in GreedyDual-Size-Frequency (Cherkasova 1998): they stand on the priority of the last victim, so what was
    valuable once leaves in the end. The square root keeps a few favourites from crowding out what is new; without it
    the policy loses to plain recency where users try variations of one prompt in a row.

    Args:
        prior: uses that an entry is given credit for before it had any.
        after_hits: whether hits insert states too. Where only misses do, an entry that serves distant prompts keeps
            the closer ones from being drawn, which later requests would have gained more from. There the steps up to
            the lowest K count as nothing, so that what serves from far away leaves first.
    """

    def __init__(self, prior: float = 1.0, *, after_hits: bool = True) -> None:
        self._prior = prior
        self._after_hits = after_hits
        self._lowest = math.inf  # K of all states there ever were
        self._entries: dict[str, _Known] = {}
        self._queue = _Queue()  # one item for each entry: its cheapest state
        self._all_uses: dict[int, float] = {}
        self._total = 0.0
        self._floor = 0.0
        self._states = 0

    def insert(self, entry: str, sizes: Mapping[int, int]) -> None:
        known = self._entries.setdefault(entry, _Known())
        self._states += len(sizes.keys() - known.sizes.keys())
        known.sizes.update(sizes)
        known.born = self._floor
        self._lowest = min([self._lowest, *sizes])
        self._rank(entry, known)

    def use(self, entry: str, k: int, wanted: int) -> None:
        self._all_uses[wanted] = self._all_uses.get(wanted, 0.0) + 1
        self._total += 1
        known = self._entries.get(entry)
        if known is not None:
            known.uses[wanted] = known.uses.get(wanted, 0.0) + 1
            known.born = self._floor
            self._rank(entry, known)

    def victim(self, pinned: Container[StateKey] = ()) -> StateKey | None:
        skipped: set[str] = set()
        while (found := self._queue.first(skipped)) is not None:
            entry, priority = found
            known = self._entries[entry]
            free = [k for k in known.sizes if (entry, k) not in pinned]
            if not free:
                skipped.add(entry)
                continue
            k, value = self._cheapest(known, free)
            if known.born + value > priority and len(free) == len(known.sizes):
                self._queue.put(entry, known.born + value)  # how uses spread over K has changed since it was ranked
                continue
            self._floor = max(self._floor, priority)
            return entry, k
        return None

    def remove(self, entry: str, k: int) -> None:
        known = self._entries.get(entry)
        if known is None or known.sizes.pop(k, None) is None:
            return
        self._states -= 1
        if known.sizes:
            self._rank(entry, known)
        else:
            del self._entries[entry]
            self._queue.drop(entry)

    def __len__(self) -> int:
        return self._states

    def _rank(self, entry: str, known: _Known) -> None:
        self._queue.put(entry, known.born + self._cheapest(known, known.sizes)[1])

    def _cheapest(self, known: _Known, among: Container[int]) -> tuple[int, float]:
        """The state of the least value, and this value: the root of the expected steps lost per megabyte."""
        ks = sorted(known.sizes)
        demand = self._demand(known)
        best, least = ks[0], math.inf
        free = 0 if self._after_hits else self._lowest  # steps that count as nothing
        below = free
        for i, k in enumerate(ks):
            if k in among:
                above = ks[i + 1] if i + 1 < len(ks) else math.inf
                uses = 0.0
                for wanted, n in demand:
                    if k <= wanted < above:
                        uses += n
                lost = uses * max(0, k - below)
                value = math.sqrt(lost / (known.sizes[k] / 2**20))
                if value < least:
                    best, least = k, value
            below = max(free, k)
        return best, least

    def _demand(self, known: _Known) -> list[tuple[float, float]]:
        """(wanted K, uses) of an entry: its own, and the prior's, spread as all uses are; before any, for every K."""
        if not self._total:
            return [(k, self._prior) for k in known.sizes]
        share = self._prior / self._total
        own = known.uses
        if not own:
            return [(wanted, share * n) for wanted, n in self._all_uses.items()]
        return [(wanted, share * n + own.get(wanted, 0.0)) for wanted, n in self._all_uses.items()]


def eviction_policy(name: str, *, after_hits: bool = True) -> EvictionPolicy:
    """The policy of a name.

    Args:
        after_hits: whether states are inserted after hits too, or after misses only.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in POLICIES:
        raise ConfigError(f"there is no eviction policy {name!r}; choose one of {', '.join(POLICIES)}")
    return Weir(after_hits=after_hits) if name == "weir" else POLICIES[name]()


POLICIES: dict[str, type[EvictionPolicy]] = {"fifo": Fifo, "lru": Lru, "lfu": Lfu, "lcbfu": Lcbfu, "weir": Weir}

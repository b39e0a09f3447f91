"""Eviction policies, which choose the state to remove when the cache is full. Pure: no clock, no store.

The unit is one state: an entry (a prompt) at one K. A policy is informed of every insertion and every use, and chooses
one victim at a time, never a state that is being read. Of equal states the one that was inserted first is evicted.
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
from weir.own_code import is_own, made

#: An entry's name, and one of its K.
StateKey = tuple[str, int]


class EvictionPolicy(ABC):
    """Orders states for eviction. It knows every state that was inserted and not removed."""

    @abstractmethod
    def insert(self, entry: str, sizes: Mapping[int, int]) -> None:
        """Records new states of one entry, bytes by K. Known states are replaced."""

    @abstractmethod
    def use(self, entry: str, k: int, wanted: int) -> None:
        """Records that the state of ``k`` served a request for which ``wanted`` ≥ ``k`` was allowed."""

    @abstractmethod
    def victim(self, pinned: Container[StateKey] = ()) -> StateKey | None:
        """Chooses the next state to evict; None if all are pinned. The state stays known until it is removed."""

    @abstractmethod
    def remove(self, entry: str, k: int) -> None:
        """Records that a state was removed, by eviction or otherwise. Unknown states are ignored."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of known states."""


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
        """Inserts an item, or changes its priority; its position among equals is that of its first insertion."""
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
        """Returns the item of the lowest priority that is not skipped, without removing it."""
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
    """A policy that gives every state a score; the lowest score is evicted first."""

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
    """NIRVANA's "least computationally beneficial and frequently used", as published: score f·K, f counted from 0."""

    def _score(self, key: StateKey, uses: int) -> float:
        return float(uses * key[1])


@dataclass(slots=True)
class _Known:
    """The state of Weir's policy for one entry: bytes by K, uses by wanted K, and their age."""

    sizes: dict[int, int] = field(default_factory=dict)
    uses: dict[int, float] = field(default_factory=dict)
    born: float = 0.0


class Weir(EvictionPolicy):
    """Evicts the state whose loss costs the fewest expected steps per byte.

    An entry without its state K still serves from the next lower one, so the value of a state is the steps between the
    two, times the number of requests that want a K between them. This number is estimated by the entry's own uses plus
    ``prior`` uses, distributed over K like the uses of all entries. That is LCBFU with f starting above 0, and with the
    hole rule in its score. Priorities age as in GreedyDual-Size-Frequency (Cherkasova 1998): the priority of the last
    victim is added, so that states which were valuable once are evicted in the end. The square root keeps a few popular
    entries from crowding out new ones; without it the policy is worse than LRU where users try variations of one prompt
    in a row.

    Args:
        prior: number of uses that a new entry is credited with.
        after_hits: whether hits insert states too. If only misses do, an entry that serves distant prompts prevents
            whole runs of closer ones, which would save later requests more steps. Then the steps up to the lowest K
            count as 0, so that states which serve distant prompts are evicted first.
    """

    def __init__(self, prior: float = 1.0, *, after_hits: bool = True) -> None:
        self._prior = prior
        self._after_hits = after_hits
        self._lowest = math.inf  # lowest K of all states so far
        self._entries: dict[str, _Known] = {}
        self._queue = _Queue()  # one item for each entry, for its cheapest state
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
                self._queue.put(
                    entry, known.born + value
                )  # the distribution of uses over K has changed since it was ranked
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
        """The state of the lowest value, and its value: the square root of the expected steps lost per megabyte."""
        ks = sorted(known.sizes)
        demand = self._demand(known)
        best, least = ks[0], math.inf
        free = 0 if self._after_hits else self._lowest  # steps that count as 0
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
        """Expected uses of an entry, as (wanted K, uses): its own and the prior's, distributed like all uses so far."""
        if not self._total:
            return [(k, self._prior) for k in known.sizes]
        share = self._prior / self._total
        own = known.uses
        if not own:
            return [(wanted, share * n) for wanted, n in self._all_uses.items()]
        return [(wanted, share * n + own.get(wanted, 0.0)) for wanted, n in self._all_uses.items()]


def eviction_policy(name: str, *, after_hits: bool = True) -> EvictionPolicy:
    """Creates the policy of a name; ``module:Class`` stands for a subclass of :class:`EvictionPolicy` of one's own.

    Args:
        after_hits: whether states are inserted after hits too, or after misses only.

    Raises:
        ConfigError: there is no policy of that name.
    """
    if is_own(name):
        policy: EvictionPolicy = made(name, "cache.eviction", has=("insert", "use", "victim", "remove"))
        return policy
    if name not in POLICIES:
        raise ConfigError(
            f"cache.eviction is {name!r}; choose one of {', '.join(POLICIES)}, or module:Class of your own"
        )
    return Weir(after_hits=after_hits) if name == "weir" else POLICIES[name]()


POLICIES: dict[str, type[EvictionPolicy]] = {"fifo": Fifo, "lru": Lru, "lfu": Lfu, "lcbfu": Lcbfu, "weir": Weir}

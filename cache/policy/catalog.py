"""What is cached, and every decision about it: which state a request may resume from, and which states leave.

Pure but for the indexes that it is given: no clock, no store, no models. The service, the in-process cache and the
replay of logs all decide here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np

from cache.policy.eviction import EvictionPolicy, StateKey
from cache.policy.selector import By, Selector, usable

#: From this cosine on two prompts count as the same: a whole ladder of one serves the other.
SAME = 0.999


class Index(Protocol):
    """Unit vectors by integer id; :class:`cache.index.VectorIndex` is one."""

    def add(self, ident: int, vector: np.ndarray) -> None: ...
    def add_many(self, ids: Sequence[int], vectors: np.ndarray) -> None: ...
    def remove(self, ident: int) -> None: ...
    def search(self, vector: np.ndarray, count: int = 1) -> list[tuple[int, float]]: ...
    def __len__(self) -> int: ...


#: The confidence 0…1, [N], that pictures of which so much was seen, float16 [N, F], are good enough for a prompt.
Weigh = Callable[[np.ndarray], np.ndarray]


class Gone(NamedTuple):
    """A state that has left the ledger and has to leave the store."""

    partition: str
    entry: str
    k: int


class Insert(StrEnum):
    """After which requests states are kept."""

    MISSES = "misses"  #: as NIRVANA does: a hit inserts nothing
    ALL = "all"  #: after a hit too, the states above the step that it resumed at


@dataclass(frozen=True, slots=True)
class Rules:
    """How the ledger decides.

    Attributes:
        candidates: neighbours to look at; of those the one that saves the most steps is taken, of several the most
            similar, or the best judged. NIRVANA looks at 1.
    """

    selector: Selector
    insert: Insert = Insert.ALL
    candidates: int = 4


@dataclass(frozen=True, slots=True)
class Match:
    """A state to resume from.

    Attributes:
        entry: whose it is.
        similarity: cosine of the two prompts.
        wanted, k: the step that the selector allows, and the stored one at or below it.
    """

    entry: str
    similarity: float
    wanted: int
    k: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup found.

    Attributes:
        similarity: of the nearest entry; −1 where there is none.
        match: the state to resume from; None is a miss.
        nearest: the nearest entry; None where there is none.
    """

    similarity: float
    match: Match | None
    nearest: str | None = None

    @property
    def entry(self) -> str | None:
        """The entry whose states may be resumed from: the match's, else the nearest one."""
        return self.match.entry if self.match else self.nearest

    @property
    def k(self) -> int:
        return self.match.k if self.match else 0


@dataclass(slots=True)
class _Entry:
    partition: str
    ident: int
    seen: np.ndarray | None = None
    sizes: dict[int, int] = field(default_factory=dict)


class Catalog:
    """Entries by partition, under one budget of bytes.

    An entry is one finished run; its states may be reused by requests of its partition only.
    """

    def __init__(self, rules: Rules, eviction: EvictionPolicy, budget_bytes: int, index: Callable[[], Index]):
        self.rules = rules
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._eviction = eviction
        self._new_index = index
        self._indexes: dict[str, Index] = {}
        self._entries: dict[str, _Entry] = {}
        self._names: dict[int, str] = {}
        self._pins: Counter[StateKey] = Counter()
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries

    @property
    def states(self) -> int:
        return len(self._eviction)

    def entries(self, partition: str | None = None) -> list[str]:
        return [name for name, e in self._entries.items() if partition is None or e.partition == partition]

    def stored(self, entry: str) -> tuple[int, ...]:
        """The K of an entry that are there, ascending."""
        known = self._entries.get(entry)
        return tuple(sorted(known.sizes)) if known else ()

    def find(
        self, partition: str, vector: np.ndarray, selector: Selector | None = None, weigh: Weigh | None = None
    ) -> Found:
        """The state of this partition that saves the most steps; nothing changes.

        Args:
            weigh: judges the neighbours' pictures for this prompt; without it a selector by confidence finds nothing.
        """
        index = self._indexes.get(partition)
        if index is None:
            return Found(-1.0, None)
        selector = selector or self.rules.selector
        near = [
            (self._names[ident], similarity)
            for ident, similarity in index.search(vector, self.rules.candidates)
            if ident in self._names
        ]
        if not near:
            return Found(-1.0, None)
        trusts = dict(near) if selector.by is By.SIMILARITY else self._judged([name for name, _ in near], weigh)
        best, highest = None, (0, -math.inf)
        for name, similarity in near:
            trust = trusts.get(name, -math.inf)
            wanted = selector.select(trust)
            k = usable(wanted, self._entries[name].sizes)
            if k and (k, trust) > highest:
                best, highest = Match(name, similarity, wanted, k), (k, trust)
        return Found(near[0][1], best, near[0][0])

    def _judged(self, names: Sequence[str], weigh: Weigh | None) -> dict[str, float]:
        """The confidence in each entry's picture, of those of which it is known what was seen in it."""
        seen = {name: self._entries[name].seen for name in names}
        rows = [row for row in seen.values() if row is not None]
        if weigh is None or not rows:
            return {}
        known = (name for name, row in seen.items() if row is not None)
        return dict(zip(known, weigh(np.stack(rows)).tolist(), strict=True))

    def pin(self, entry: str, ks: Iterable[int]) -> None:
        """Keeps states that may be read soon, until :meth:`unpin`."""
        self._pins.update((entry, k) for k in ks)

    def unpin(self, entry: str, ks: Iterable[int]) -> None:
        """Undoes one :meth:`pin`."""
        for key in ((entry, k) for k in ks):
            self._pins[key] -= 1
            if self._pins[key] <= 0:
                del self._pins[key]

    def use(self, entry: str, k: int, wanted: int) -> None:
        """Counts that a request resumed from a state.

        Args:
            wanted: the step that it could have resumed at, had its state been there; at least ``k``.
        """
        self._eviction.use(entry, k, wanted)

    def keeps(self, found: Found, ks: tuple[int, ...]) -> tuple[int, ...]:
        """Of the K that a run with this outcome of its lookup passes, those that are worth keeping."""
        if found.match is None or self.rules.selector.by is By.CONFIDENCE:
            return ks  # a resumed run that leaves steps out keeps nothing itself; the one drawn in its place does
        if self.rules.insert is Insert.MISSES or found.similarity >= SAME:
            return ()
        return tuple(k for k in ks if k > found.match.k)

    def restore(
        self,
        partition: str,
        entries: Sequence[str],
        vectors: np.ndarray | None,
        sizes: Sequence[Mapping[int, int]],
        seen: Sequence[np.ndarray | None] = (),
    ) -> None:
        """Takes many entries in at once, the oldest first; :meth:`make_room` has to follow.

        Args:
            vectors: float32 [N, D]; None: of another encoder. Nobody finds those entries; they leave as others do.
        """
        fresh = [i for i, entry in enumerate(entries) if entry not in self._entries and sizes[i]]
        if not fresh:
            return
        idents = range(self._next, self._next + len(fresh))
        self._next += len(fresh)
        for i, ident in zip(fresh, idents, strict=True):
            self._entries[entries[i]] = _Entry(partition, ident, seen[i] if seen else None, dict(sizes[i]))
            self._names[ident] = entries[i]
            self._eviction.insert(entries[i], sizes[i])
            self.used_bytes += sum(sizes[i].values())
        if vectors is not None:
            if partition not in self._indexes:
                self._indexes[partition] = self._new_index()
            self._indexes[partition].add_many(idents, vectors[fresh])

    def insert(
        self,
        partition: str,
        entry: str,
        vector: np.ndarray,
        sizes: Mapping[int, int],
        seen: np.ndarray | None = None,
    ) -> list[Gone]:
        """Takes the states of a finished run in: bytes by K. Answers the states that have to leave for them.

        What is larger than the whole budget is not taken in and answered right back.

        Args:
            seen: what the discriminator saw in the run's picture, float16 [F].
        """
        if not sizes:
            return []
        if sum(sizes.values()) > self.budget_bytes:
            return [Gone(partition, entry, k) for k in sizes]
        known = self._entries.get(entry)
        replaced = sum(known.sizes.get(k, 0) for k in sizes) if known else 0
        leaving = self.make_room(sum(sizes.values()) - replaced)
        known = self._entries.get(entry)
        if known is None:
            known = self._entries[entry] = _Entry(partition, self._next, seen)
            self._names[self._next] = entry
            self._next += 1
            if partition not in self._indexes:
                self._indexes[partition] = self._new_index()
            self._indexes[partition].add(known.ident, vector)
        self.used_bytes += sum(sizes.values()) - sum(known.sizes.get(k, 0) for k in sizes)
        known.sizes.update(sizes)
        self._eviction.insert(entry, sizes)
        return leaving + self.make_room(0)

    def make_room(self, size_bytes: int) -> list[Gone]:
        """Evicts until so many bytes are free; pinned states stay, so that a short excess is possible."""
        leaving = []
        while self.used_bytes + size_bytes > self.budget_bytes:
            victim = self._eviction.victim(self._pins)
            if victim is None:
                break
            leaving.append(Gone(self._entries[victim[0]].partition, *victim))
            self.drop(*victim)
        return leaving

    def drop(self, entry: str, k: int) -> None:
        """Forgets one state; with its last state the entry leaves the index, and the last entry takes that along:
        guidance and negative prompts, which are the callers' to choose, make any number of partitions."""
        known = self._entries.get(entry)
        if known is None or k not in known.sizes:
            return
        self.used_bytes -= known.sizes.pop(k)
        self._eviction.remove(entry, k)
        if not known.sizes:
            index = self._indexes.get(known.partition)
            if index is not None:
                index.remove(known.ident)
                if not len(index):
                    del self._indexes[known.partition]
            del self._entries[entry], self._names[known.ident]

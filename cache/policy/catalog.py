"""The catalog of cached states. It decides which state a request may resume from, and which states are evicted.

Pure apart from the indexes that it is given: no clock, no store, no models. The service, the in-process cache and the
replay of logs use it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np

from cache.policy.eviction import EvictionPolicy
from cache.policy.pins import Pins
from cache.policy.selector import By, Selector, usable

#: From this cosine on, two prompts count as the same.
SAME = 0.999


class Index(Protocol):
    """Unit vectors by integer id; :class:`cache.index.VectorIndex` is one."""

    def add(self, ident: int, vector: np.ndarray) -> None: ...
    def add_many(self, ids: Sequence[int], vectors: np.ndarray) -> None: ...
    def remove(self, ident: int) -> None: ...
    def search(self, vector: np.ndarray, count: int = 1) -> list[tuple[int, float]]: ...
    def __len__(self) -> int: ...


#: Confidence 0…1, [N], that images with these features, float16 [N, F], are good enough for a prompt.
Weigh = Callable[[np.ndarray], np.ndarray]


class Gone(NamedTuple):
    """A state that was removed from the catalog and has to be deleted from the store."""

    partition: str
    entry: str
    k: int


class Insert(StrEnum):
    """The requests after which states are inserted."""

    MISSES = "misses"  #: as in NIRVANA: a hit inserts nothing
    ALL = "all"  #: a hit inserts the states above the step that it resumed at


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of the catalog's decisions.

    Attributes:
        candidates: number of neighbours that are considered; the one that saves the most steps is taken, of several the
            most similar or the best judged. NIRVANA considers 1.
    """

    selector: Selector
    insert: Insert = Insert.ALL
    candidates: int = 4


@dataclass(frozen=True, slots=True)
class Match:
    """A state to resume from.

    Attributes:
        entry: its entry.
        similarity: cosine of the two prompts.
        wanted, k: the step that the selector allows, and the stored step at or below it.
    """

    entry: str
    similarity: float
    wanted: int
    k: int


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a lookup.

    Attributes:
        similarity: of the nearest entry; −1 without one.
        match: the state to resume from; None: a miss.
        nearest: the nearest entry; None without one.
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
    """The entries by partition, under one budget of bytes.

    An entry is one finished run. Only requests of its partition may reuse its states.
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
        #: States that are protected from eviction.
        self.pins = Pins()
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
        """The stored K of an entry, in ascending order."""
        known = self._entries.get(entry)
        return tuple(sorted(known.sizes)) if known else ()

    def find(
        self, partition: str, vector: np.ndarray, selector: Selector | None = None, weigh: Weigh | None = None
    ) -> Found:
        """Finds the state of a partition that saves the most steps; changes nothing.

        Args:
            weigh: judges the neighbours' images for this prompt; without it a selector by confidence finds nothing.
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
        """The confidence in the image of each entry with features."""
        seen = {name: self._entries[name].seen for name in names}
        rows = [row for row in seen.values() if row is not None]
        if weigh is None or not rows:
            return {}
        known = (name for name, row in seen.items() if row is not None)
        return dict(zip(known, weigh(np.stack(rows)).tolist(), strict=True))

    def use(self, entry: str, k: int, wanted: int) -> None:
        """Counts a request that resumed from a state.

        Args:
            wanted: the step that the selector allowed; at least ``k``.
        """
        self._eviction.use(entry, k, wanted)

    def keeps(self, found: Found, ks: tuple[int, ...]) -> tuple[int, ...]:
        """Of the K that a run after this lookup passes, those whose states are to be kept."""
        if found.match is None or self.rules.selector.by is By.CONFIDENCE:
            return ks  # a resumed run that skips steps captures nothing; a run from noise in its place does
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
        """Inserts many entries at once, the oldest first; :meth:`make_room` has to follow.

        Args:
            vectors: float32 [N, D]; None: of another encoder. Lookups do not find such entries, but they can be
                evicted.
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
        """Inserts the states of a finished run, bytes by K; returns the states that are evicted for them.

        States that are larger than the whole budget are not inserted, and are among those returned.

        Args:
            seen: the discriminator's features of the run's image, float16 [F].
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

    def purge(self, prefix: str) -> list[Gone]:
        """Removes every entry of the partitions whose names begin with the prefix, pinned ones included; returns their
        states."""
        leaving = [
            Gone(known.partition, name, k)
            for name, known in self._entries.items()
            if known.partition.startswith(prefix)
            for k in known.sizes
        ]
        for gone in leaving:
            self.drop(gone.entry, gone.k)
        return leaving

    def tenants(self) -> Counter[str]:
        """Number of entries by the part of their partition's name before the first ``|``, which is the tenant."""
        return Counter(known.partition.partition("|")[0] for known in self._entries.values())

    def make_room(self, size_bytes: int) -> list[Gone]:
        """Evicts states until ``size_bytes`` are free; pinned states stay, so the budget can be exceeded for a short
        time."""
        leaving = []
        while self.used_bytes + size_bytes > self.budget_bytes:
            victim = self._eviction.victim(self.pins)
            if victim is None:
                break
            leaving.append(Gone(self._entries[victim[0]].partition, *victim))
            self.drop(*victim)
        return leaving

    def drop(self, entry: str, k: int) -> None:
        """Removes one state; the last state of an entry removes the entry, and the last entry of a partition its index.

        Clients choose guidance and negative prompts, so the number of partitions is unlimited.
        """
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

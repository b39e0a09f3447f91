"""The approximate cache of one family, made of indexes, catalog and store.

It gets encoded prompts, so a lookup takes less than a millisecond. A lookup that fails is a miss, and an insertion that
fails changes nothing. Not thread-safe: the service calls it from one thread.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote

import numpy as np

from cache.policy.catalog import Catalog, Found, Gone
from cache.policy.partition import Partitions, Settings
from cache.store.backend import StoreFailed
from cache.store.store import PREFIX, ROOT, Record, SealedStore
from weir.clocks import Clocks
from weir.core import CacheLookup, Resume
from weir.prompt_levels import LevelHead
from weir.states import capture_steps, state_key

log = logging.getLogger(__name__)

#: Seconds after which a request that was not finished is dropped.
_EXPIRY_S = 900.0
#: Number of ends that are remembered because their lookups may still arrive.
_MOST_EARLY_ENDS = 1000
#: Largest number of states that wait for deletion from the store; the next start finds the others.
_MOST_TO_DELETE = 10_000


class Predictor(Protocol):
    """Predicts before the search whether a prompt has a match."""

    def likely(self, vector: np.ndarray) -> bool: ...


@runtime_checkable
class Judge(Protocol):
    """Judges how well images of earlier runs fit a new prompt; ``workers.models.judges`` has implementations.

    Attributes:
        version: features of one version are unreadable for others.
    """

    version: str

    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        """Confidence 0…1, [N], in the images with the features ``seen``, float16 [N, F]."""
        ...


class PromptModels(NamedTuple):
    """Models that a cache asks about a prompt, besides its encoder.

    Attributes:
        predictor: None: every prompt is searched for.
        levels: None: prompts have no class.
        judge: judge of the cached images, for selectors by confidence.
    """

    predictor: Predictor | None = None
    levels: LevelHead | None = None
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class _OpenRequest:
    """A request between its lookup and its end.

    Attributes:
        pinned: the K of the found entry that are not evicted meanwhile.
        purged: whether a purge since its lookup covers what it captures.
    """

    partition: str
    prompt: str
    vector: np.ndarray
    found: Found
    pinned: tuple[int, ...]
    since: float
    purged: bool = False


@dataclass
class Counters:
    """Counts since the start.

    Attributes:
        served: number of requests by the K that they resumed at.
        reasons: misses and other failures by reason.
    """

    lookups: int = 0
    served: Counter[int] = field(default_factory=Counter)
    inserted: int = 0
    evicted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class ApproximateCache:
    """Answers lookups, and inserts finished runs.

    Args:
        dim: width of the encoder's vectors.
        steps: steps of a whole run of the heavy variant, for requests that set none.
        clocks: the wall clock is that of the entry records, which outlive the process.
    """

    def __init__(
        self,
        partitions: Partitions,
        catalog: Catalog,
        store: SealedStore,
        *,
        dim: int,
        steps: int,
        models: PromptModels = PromptModels(),
        clocks: Clocks = Clocks(),
    ):
        self.counters = Counters()
        self.catalog = catalog
        self.store = store
        self._dim = dim
        self._partitions = partitions
        self._steps = steps
        self._predictor = models.predictor
        self.levels = models.levels
        self._judge = models.judge
        self._clock = clocks.monotonic
        self._unix_time = clocks.unix
        self._open: OrderedDict[str, _OpenRequest] = OrderedDict()
        # A client that leaves during its lookup may have its end arrive first. Its lookup must not pin anything then.
        self._ended_early: OrderedDict[str, None] = OrderedDict()
        self._to_delete: deque[Gone] = deque(maxlen=_MOST_TO_DELETE)

    def lookup(self, name: str, tenant: str, prompt: str, settings: Settings, vector: np.ndarray) -> CacheLookup:
        """Looks for a state for the request ``name``; :meth:`finish` has to follow, also if the request fails.

        Args:
            vector: the encoded prompt, float32 [dim]. It is also the vector of the entry that the request may insert.
        """
        self.counters.lookups += 1
        partition = self._partitions.name(tenant, settings)
        steps = settings.steps or self._steps
        selector = self.catalog.rules.selector.for_steps(steps)
        found = Found(-1.0, None)
        if self._predictor is None or self._predictor.likely(vector):
            weigh = None if self._judge is None else partial(self._judge.weigh, prompt=prompt)
            found = self.catalog.find(partition, vector, selector, weigh)
        else:
            self.counters.reasons["predicted_miss"] += 1
        self._drop_expired()
        entry, match = found.entry, found.match
        ks = () if entry is None else self.catalog.stored(entry)
        if name not in self._ended_early:
            if entry is not None:
                self.catalog.pins.add(entry, ks)
            self._open[name] = _OpenRequest(partition, prompt, vector, found, ks, self._clock())
        stored = tuple((k, state_key(partition, str(entry), k)) for k in ks)
        resume = None
        if match is not None:
            resume = Resume(dict(stored)[match.k], match.k, selector.stride, selector.accept)
        return CacheLookup(
            partition=partition,
            similarity=None if found.similarity <= -1 else found.similarity,
            entry=entry,
            resume=resume,
            stored=stored,
            capture=bool(self.catalog.keeps(found, capture_steps(steps))),
            prompt_class=None if self.levels is None else self.levels.level(vector),
        )

    def finish(
        self,
        name: str,
        resumed_at: int = 0,
        captured: Sequence[int] = (),
        sought: int = 0,
        seen: bytes | None = None,
        refused: bool = False,
    ) -> None:
        """Ends a request that was answered or failed. Never raises.

        Args:
            resumed_at: the step that its run began at.
            captured: the K whose states the worker stored.
            sought: K of the state that the run was to resume from; 0: none. If the run did not resume there, the cache
                checks whether the store still has the state.
            seen: the discriminator's features of its image, float16.
            refused: the worker read the state, and it did not fit the worker's model.
        """
        ticket = self._open.pop(name, None)
        if ticket is None:
            self._ended_early[name] = None
            if len(self._ended_early) > _MOST_EARLY_ENDS:
                self._ended_early.popitem(last=False)
            return
        found, entry = ticket.found, ticket.found.entry
        self.counters.served[resumed_at] += 1
        if entry is not None:
            self.catalog.pins.remove(entry, ticket.pinned)
            if sought and resumed_at == sought:
                self.catalog.use(entry, sought, found.match.wanted if found.match and found.k == sought else sought)
        try:
            if captured and ticket.purged:
                self._to_delete += [Gone(ticket.partition, name, k) for k in captured]
                self.sweep()
            elif captured:
                self._insert(name, ticket, tuple(captured), seen)
            if entry is not None and sought and resumed_at != sought:
                self.counters.reasons["state_not_used"] += 1
                self._check_missing(ticket.partition, entry, sought, refused)
        except StoreFailed as error:
            self.counters.reasons["store_failed"] += 1
            log.info("the cache continues without the store: %s", error.message)

    @property
    def pinned(self) -> int:
        """Number of states that open requests keep from eviction."""
        return len(self.catalog.pins)

    def stored(self, name: str, captured: Sequence[int]) -> bool:
        """Whether the store has all states that a run captured; True while the store cannot be read."""
        ticket = self._open.get(name)
        try:
            return ticket is None or len(self.store.sizes(ticket.partition, name, captured)) == len(captured)
        except StoreFailed:
            return True

    def rebuild(self, progress: Callable[[int], None] | None = None) -> int:
        """Rebuilds the catalog from the store; returns the number of entries.

        Raises:
            StoreFailed: the store cannot be read; the cache is unchanged.
        """
        # Vectors of another width belong to another encoder, whose entries a service that is being replaced may still
        # use. So they are not deleted. They count against the budget, and are evicted before others of equal value.
        records: dict[tuple[bool, str], list[Record]] = {}
        for record in self.store.records(progress):
            is_ours = len(record.vector) == self._dim
            records.setdefault((is_ours, record.partition), []).append(record)
        for (is_ours, partition), found in sorted(records.items(), key=itemgetter(0)):
            found.sort(key=lambda r: r.created)
            vectors = np.stack([r.vector for r in found]).astype(np.float32) if is_ours else None
            readable = None if self._judge is None else self._judge.version
            seen = [r.seen if r.judge == readable else None for r in found]
            self.catalog.restore(partition, [r.entry for r in found], vectors, [r.sizes for r in found], seen)
        self._evicted(self.catalog.make_room(0))
        with suppress(StoreFailed):  # the next sweep tries again
            self.sweep()
        return len(self.catalog)

    def purge(self, tenant: str | None = None) -> dict[str, int]:
        """Deletes what a tenant, or every tenant, has cached: from the index and from the store.

        States that runs in flight capture are deleted when these runs end.

        Returns:
            ``entries`` that left the index, and ``values`` that were deleted from the store.

        Raises:
            StoreFailed: some values remain in the store. The index is empty of them, and a repeated purge continues.
        """
        prefix = "" if tenant is None else Partitions.prefix(tenant)
        before = len(self.catalog)
        self.catalog.purge(prefix)
        for name, ticket in self._open.items():
            if ticket.partition.startswith(prefix):
                self._open[name] = replace(ticket, purged=True)
        count = self.store.purge(ROOT if tenant is None else PREFIX + prefix)
        return {"entries": before - len(self.catalog), "values": count}

    def statistics(self) -> dict[str, Any]:
        """Counts of the index, and counts of requests since the start."""
        return {
            "entries": len(self.catalog),
            "states": self.catalog.states,
            "bytes": self.catalog.used_bytes,
            "budget_bytes": self.catalog.budget_bytes,
            "tenants": {unquote(tenant): count for tenant, count in sorted(self.catalog.tenants().items())},
            "lookups": self.counters.lookups,
            "served": {str(k): count for k, count in sorted(self.counters.served.items())},
            "inserted": self.counters.inserted,
            "evicted": self.counters.evicted,
        }

    def sweep(self) -> None:
        """Deletes states that left the catalog from the store, and the records of entries without states.

        The next call retries failed deletions. Until then the budget counts their bytes as free.

        Raises:
            StoreFailed: some states may remain.
        """
        entries = {(partition, entry) for partition, entry, _ in self._to_delete if entry not in self.catalog}
        self.store.forget(self._to_delete, entries)
        self._to_delete.clear()

    def _insert(self, name: str, ticket: _OpenRequest, captured: tuple[int, ...], seen: bytes | None) -> None:
        partition = ticket.partition
        try:
            sizes = self.store.sizes(partition, name, captured)
        except StoreFailed:
            self._to_delete += [
                Gone(partition, name, k) for k in captured
            ]  # they may be stored, and the catalog does not have them
            raise
        self._to_delete += [Gone(partition, name, k) for k in captured if k not in sizes]  # they may still arrive
        if not sizes:
            self.counters.reasons["captured_not_there"] += 1
            return
        sight = None if self._judge is None or seen is None else np.frombuffer(seen, np.float16)
        self._evicted(self.catalog.insert(partition, name, ticket.vector, sizes, sight))
        self.counters.inserted += len(sizes)
        stayed = {k: sizes[k] for k in self.catalog.stored(name)}
        try:
            if stayed:
                vector = ticket.vector.astype(np.float16)
                version = "" if self._judge is None else self._judge.version
                self.store.remember(
                    Record(partition, name, ticket.prompt, vector, stayed, self._unix_time(), sight, version)
                )
        finally:  # a full store refuses the record, and accepts deletions
            self.sweep()

    def _evicted(self, gone: Sequence[Gone]) -> None:
        self.counters.evicted += len(gone)
        self._to_delete += gone

    def _check_missing(self, partition: str, entry: str, sought: int, refused: bool) -> None:
        """Checks a state that a worker could not use, and removes it from the catalog if it is missing or not ours.

        A refused state removes its whole entry, because one model produced all states of an entry. The next run of the
        prompt is kept again.
        """
        stored = self.catalog.stored(entry)
        if refused:
            lost = stored
            log.warning("removed the states of %s, which do not fit a worker's model", entry)
        elif self.store.lost(state_key(partition, entry, sought)):
            there = self.store.sizes(partition, entry, stored)  # states of an entry are often lost together
            lost = tuple(k for k in stored if k == sought or k not in there)
            self.counters.reasons["state_lost"] += 1
        else:
            return
        for k in lost:
            self.catalog.drop(entry, k)
        self._to_delete += [Gone(partition, entry, k) for k in lost]
        self.sweep()

    def _drop_expired(self) -> None:
        until = self._clock() - _EXPIRY_S
        while self._open and next(iter(self._open.values())).since < until:
            name, ticket = self._open.popitem(last=False)
            if ticket.found.entry is not None:
                self.catalog.pins.remove(ticket.found.entry, ticket.pinned)
            self.counters.reasons["never_finished"] += 1
            log.info("dropped the request %s, which was not finished in time", name)

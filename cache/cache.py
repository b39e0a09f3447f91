"""The approximate cache of one family: encoder, indexes, ledger and store put together.

It can only help: a lookup that fails in any way is a miss, and an insertion that fails leaves everything as it was.
Not safe for several threads: the service calls it from one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Protocol, runtime_checkable

import numpy as np

from cache.encoder import Encoder
from cache.policy.catalog import Catalog, Found, Gone
from cache.policy.partition import Partitions, Settings
from cache.store.backend import StoreFailed
from cache.store.store import Record, SealedStore
from weir.core import CacheLookup, Resume
from weir.prompt_levels import LevelHead
from weir.states import capture_steps, state_key

log = logging.getLogger(__name__)

#: A request that has not been finished after so many seconds will not be.
_FORGET_S = 900.0
#: States that wait for a store to delete them; what is more, the next start finds.
_LEAVING = 10_000


class Predictor(Protocol):
    """Says before the search whether a prompt will find anything."""

    def likely(self, vector: np.ndarray) -> bool: ...


@runtime_checkable
class Judge(Protocol):
    """Says how well pictures of earlier runs fit a new prompt (those of ``workers.models.judges`` are some).

    Attributes:
        version: what one version has seen, no other can read.
    """

    version: str

    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        """Confidence 0…1, [N], in the pictures of which this was seen, float16 [N, F]."""
        ...


@dataclass(frozen=True, slots=True)
class _Open:
    """A request between its lookup and its end.

    Attributes:
        pinned: the K of the found entry that stay meanwhile.
    """

    partition: str
    prompt: str
    vector: np.ndarray
    found: Found
    pinned: tuple[int, ...]
    since: float


@dataclass
class Counters:
    """What happened, since the start.

    Attributes:
        served: requests by the K that they really resumed at.
        reasons: misses by reason, and whatever else went wrong.
    """

    lookups: int = 0
    served: Counter[int] = field(default_factory=Counter)
    inserted: int = 0
    evicted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class ApproximateCache:
    """Answers lookups and takes finished runs in.

    Args:
        steps: of a whole run of the heavy variant, where a request does not say.
        judge: of the pictures, where the selector goes by confidence.
    """

    def __init__(
        self,
        encoder: Encoder,
        partitions: Partitions,
        ledger: Catalog,
        store: SealedStore,
        *,
        steps: int,
        predictor: Predictor | None = None,
        levels: LevelHead | None = None,
        judge: Judge | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.counters = Counters()
        self.ledger = ledger
        self.store = store
        self._encoder = encoder
        self._partitions = partitions
        self._steps = steps
        self._predictor = predictor
        self.levels = levels
        self._judge = judge
        self._clock = clock
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._leaving: deque[Gone] = deque(maxlen=_LEAVING)

    def lookup(self, name: str, tenant: str, prompt: str, settings: Settings) -> CacheLookup:
        """Looks for a state for the request ``name``; :meth:`finish` has to follow, whatever becomes of it."""
        self.counters.lookups += 1
        partition = self._partitions.name(tenant, settings)
        [vector] = self._encoder.encode([prompt])
        steps = settings.steps or self._steps
        selector = self.ledger.rules.selector.for_steps(steps)
        found = Found(-1.0, None)
        if self._predictor is None or self._predictor.likely(vector):
            weigh = None if self._judge is None else partial(self._judge.weigh, prompt=prompt)
            found = self.ledger.find(partition, vector, selector, weigh)
        else:
            self.counters.reasons["predicted_miss"] += 1
        self._forget_old()
        entry, match = found.entry, found.match
        ks = () if entry is None else self.ledger.stored(entry)
        if entry is not None:
            self.ledger.pin(entry, ks)
        self._open[name] = _Open(partition, prompt, vector, found, ks, self._clock())
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
            capture=bool(self.ledger.keeps(found, capture_steps(steps))),
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
        """The request is answered, or has failed. Never raises.

        Args:
            resumed_at: the step that its run really began at.
            captured: the K whose states the worker has stored.
            sought: K of the state that the run should have resumed from, whoever chose it; where it did not come, it is
                looked after. 0: none.
            seen: what the discriminator saw in its image, float16.
            refused: a worker had the state, and it did not fit the worker's model.
        """
        ticket = self._open.pop(name, None)
        if ticket is None:
            return
        found, entry = ticket.found, ticket.found.entry
        self.counters.served[resumed_at] += 1
        if entry is not None:
            self.ledger.unpin(entry, ticket.pinned)
            if sought and resumed_at == sought:
                self.ledger.use(entry, sought, found.match.wanted if found.match and found.k == sought else sought)
        try:
            if captured:
                self._insert(name, ticket, tuple(captured), seen)
            if entry is not None and sought and resumed_at != sought:
                self.counters.reasons["state_not_used"] += 1
                self._look_after(ticket.partition, entry, sought, refused)
        except StoreFailed as error:
            self.counters.reasons["store_failed"] += 1
            log.info("the cache goes on without the store: %s", error.message)

    def stored(self, name: str, captured: Sequence[int]) -> bool:
        """Whether the store has all that a run captured, as far as anybody can say."""
        ticket = self._open.get(name)
        try:
            return ticket is None or len(self.store.sizes(ticket.partition, name, captured)) == len(captured)
        except StoreFailed:
            return True

    def rebuild(self, progress: Callable[[int], None] | None = None) -> int:
        """Takes in what the store holds; how many entries.

        Raises:
            StoreFailed: the store cannot be read; the cache stays as it was.
        """
        # Vectors of another width are another encoder's. Its entries may be in use: while services are replaced one by
        # one, the old one reads the same store. So they are not deleted; they count, and of equals they leave first.
        records: dict[tuple[bool, str], list[Record]] = {}
        for record in self.store.records(progress):
            is_ours = len(record.vector) == self._encoder.dim
            records.setdefault((is_ours, record.partition), []).append(record)
        for (is_ours, partition), found in sorted(records.items(), key=itemgetter(0)):
            found.sort(key=lambda r: r.created)
            vectors = np.stack([r.vector for r in found]).astype(np.float32) if is_ours else None
            readable = None if self._judge is None else self._judge.version
            seen = [r.seen if r.judge == readable else None for r in found]
            self.ledger.restore(partition, [r.entry for r in found], vectors, [r.sizes for r in found], seen)
        self._evicted(self.ledger.make_room(0))
        with suppress(StoreFailed):  # the next time, then
            self.sweep()
        return len(self.ledger)

    def sweep(self) -> None:
        """Deletes from the store what has left the ledger, and the records of entries that have no state left. What
        the store does not delete now it is asked to the next time: in between it counts as free, and is not.

        Raises:
            StoreFailed: some may be left.
        """
        entries = {(partition, entry) for partition, entry, _ in self._leaving if entry not in self.ledger}
        self.store.forget(self._leaving, entries)
        self._leaving.clear()

    def _insert(self, name: str, ticket: _Open, captured: tuple[int, ...], seen: bytes | None) -> None:
        partition = ticket.partition
        try:
            sizes = self.store.sizes(partition, name, captured)
        except StoreFailed:
            self._leaving += [Gone(partition, name, k) for k in captured]  # they may be there, and nobody knows them
            raise
        self._leaving += [Gone(partition, name, k) for k in captured if k not in sizes]  # they may come yet
        if not sizes:
            self.counters.reasons["captured_not_there"] += 1
            return
        sight = None if self._judge is None or seen is None else np.frombuffer(seen, np.float16)
        self._evicted(self.ledger.insert(partition, name, ticket.vector, sizes, sight))
        self.counters.inserted += len(sizes)
        stayed = {k: sizes[k] for k in self.ledger.stored(name)}
        try:
            if stayed:
                vector = ticket.vector.astype(np.float16)
                version = "" if self._judge is None else self._judge.version
                self.store.remember(
                    Record(partition, name, ticket.prompt, vector, stayed, self._clock(), sight, version)
                )
        finally:  # a store that is full refuses the record, and takes deletions
            self.sweep()

    def _evicted(self, gone: Sequence[Gone]) -> None:
        self.counters.evicted += len(gone)
        self._leaving += gone

    def _look_after(self, partition: str, entry: str, sought: int, refused: bool) -> None:
        """A state that a worker could not use: if it is really not there, or not ours, the ledger lets it go; if it was
        refused, its whole entry, for one model made all of an entry's states. The next run of the prompt is kept."""
        stored = self.ledger.stored(entry)
        if refused:
            lost = stored
            log.warning("the states of %s do not fit a worker's model, and go", entry)
        elif self.store.lost(state_key(partition, entry, sought)):
            there = self.store.sizes(partition, entry, stored)  # what took one of an entry's states often took all
            lost = tuple(k for k in stored if k == sought or k not in there)
            self.counters.reasons["state_lost"] += 1
        else:
            return
        for k in lost:
            self.ledger.drop(entry, k)
        self._leaving += [Gone(partition, entry, k) for k in lost]
        self.sweep()

    def _forget_old(self) -> None:
        until = self._clock() - _FORGET_S
        while self._open and next(iter(self._open.values())).since < until:
            name, ticket = self._open.popitem(last=False)
            if ticket.found.entry is not None:
                self.ledger.unpin(ticket.found.entry, ticket.pinned)
            self.counters.reasons["never_finished"] += 1
            log.info("%s was never finished", name)

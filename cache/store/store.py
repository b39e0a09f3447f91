"""Sealed states and entry records in a backend. A value whose tag is invalid counts as a miss.

Keys: ``weir:1:<partition>:<entry>:<K>`` for a state, ``weir:1:<partition>:<entry>`` for the record of an entry, which
has the data to rebuild the index: the prompt's vector, and the bytes of every state.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cache.store.backend import WRONG_TYPE, Backend, StoreFailed, batches
from cache.store.quantise import quantise, restore
from cache.store.seal import Compression, seal, unseal
from weir import metrics as metrics_of
from weir.core import ImageRequest
from weir.errors import StateRefused
from weir.json_files import parsed_json
from weir.states import PREFIX, State, state_key
from weir.telemetry import Metrics, NoMetrics

log = logging.getLogger(__name__)

#: Prefix of the keys of every format; a purge of everything deletes them.
ROOT = "weir:"
_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """The record of an entry in the store.

    Attributes:
        vector: unit vector of the prompt, float16 [D].
        sizes: bytes of the stored states, by K.
        seen: features of the image by the discriminator of version ``judge``, float16 [F]; None without them.
    """

    partition: str
    entry: str
    prompt: str
    vector: np.ndarray
    sizes: dict[int, int]
    created: float
    seen: np.ndarray | None = None
    judge: str = ""


def entry_key(partition: str, entry: str) -> str:
    return f"{PREFIX}{partition}:{entry}"


class SealedStore:
    """A :class:`weir.states.StateStore` for workers, and the records of the cache. Thread-safe.

    Args:
        secret: secret of the integrity tags; values that were written without it are never used.
        retired: earlier secrets, whose values are still read, so that a secret can be replaced without a cold cache.
        metrics: where the outcomes of calls are recorded.
    """

    def __init__(
        self,
        backend: Backend,
        secret: bytes,
        compression: Compression = "none",
        retired: Sequence[bytes] = (),
        metrics: Metrics | None = None,
    ):
        if min(map(len, (secret, *retired))) < 16:
            raise ValueError("the secret has to have at least 16 bytes")
        self.backend = backend
        #: Counts of hits, and of misses by their reason.
        self.counts: Counter[str] = Counter()
        self._secret = secret
        self._retired = tuple(retired)
        self._compression: Compression = compression
        self._lock = threading.Lock()
        self._metrics = metrics or NoMetrics()

    # --------------------------------------------------------------------------------------------- states

    def get(self, key: str) -> State | None:
        """The state of a key; None if it is missing, late, or has an invalid tag. Never raises."""
        try:
            value = self.backend.get(key)
            if value is None:
                self._count("absent")
                return None
            state = _read_state(*self._unseal(key, value))
        except StoreFailed as error:
            self._count("failed")
            log.info("a state was not fetched: %s", error.message)
            return None
        except StateRefused as error:
            self._count("refused")
            log.warning("a stored state was refused: %s", error.message)
            return None
        self._count("read")
        return state

    def put(self, request: ImageRequest, states: Sequence[State]) -> None:
        """Stores the states of one finished request in one round trip; none for a request without a partition.

        Raises:
            StoreFailed: none of them was stored.
        """
        if not request.capture:
            return
        values = {}
        for state in states:
            key = state_key(request.capture, request.id, state.step)
            values[key] = seal(key, _write_state(state, self._compression), self._secret, self._compression)
        try:
            self.backend.put(values)
        except StoreFailed:
            self._count("write_failed")
            raise
        self._count("written", len(values))

    def show(self) -> None:
        """Records the state of the circuit breakers; to be called every few seconds."""
        for side, is_open in self.backend.breakers().items():
            self._metrics.set(metrics_of.BREAKER_OPEN, float(is_open), side=side)

    # -------------------------------------------------------------------------------------------- records

    def sizes(self, partition: str, entry: str, ks: Sequence[int]) -> dict[int, int]:
        """Bytes of the states that are in the store, by K.

        Raises:
            StoreFailed: the store cannot be read.
        """
        found = self.backend.sizes([state_key(partition, entry, k) for k in ks])
        return {k: size for k, size in zip(ks, found, strict=True) if size}

    def remember(self, record: Record) -> None:
        """Writes the record of an entry.

        Raises:
            StoreFailed: the record was not written.
        """
        key = entry_key(record.partition, record.entry)
        fields = {
            "partition": record.partition,
            "entry": record.entry,
            "prompt": record.prompt,
            "sizes": json.dumps(record.sizes),
            "created": repr(record.created),
            "judge": record.judge,
        }
        tensors = {"vector": record.vector.astype(np.float16)}
        if record.seen is not None:
            tensors["seen"] = record.seen
        body = save(tensors, metadata=fields)
        self.backend.put({key: seal(key, body, self._secret)})

    def lost(self, key: str) -> bool:
        """Whether a state is missing or has an invalid tag; False while the store does not answer."""
        try:
            value = self.backend.get(key)
            if value is not None:
                _read_state(*self._unseal(key, value))
        except StoreFailed as error:
            return error.message.startswith(WRONG_TYPE)
        except StateRefused:
            return True
        return value is None

    def is_ours(self, key: str, value: bytes) -> bool:
        """Whether a value was sealed with one of our secrets for this key."""
        try:
            self._unseal(key, value)
        except StateRefused:
            return False
        return True

    def forget(self, states: Iterable[tuple[str, str, int]], entries: Iterable[tuple[str, str]] = ()) -> None:
        """Deletes states (partition, entry, K) and records (partition, entry).

        Raises:
            StoreFailed: some may remain; the next start finds and deletes them.
        """
        keys = [state_key(*state) for state in states] + [entry_key(*entry) for entry in entries]
        if keys:
            self.backend.delete(keys)

    def records(self, progress: Callable[[int], None] | None = None) -> Iterator[Record]:
        """Yields every valid record with the states that are in the store; deletes invalid records and orphaned states.

        Raises:
            StoreFailed: the store cannot be read.
        """
        states: dict[str, dict[int, str]] = {}
        entries: dict[str, None] = {}  # Redis may return a key twice while its table grows or shrinks
        for key in self.backend.keys(PREFIX):
            parts = key.removeprefix(PREFIX).split(":")
            if len(parts) == 3 and parts[2].isdigit():
                states.setdefault(f"{PREFIX}{parts[0]}:{parts[1]}", {})[int(parts[2])] = key
            elif len(parts) == 2:
                entries[key] = None
        done = 0
        for batch in batches(entries, _BATCH):
            for key, value in zip(batch, self.backend.get_many(batch), strict=True):
                mine = states.pop(key, {})
                record = self._record(key, value, mine)
                if record is None:
                    self.backend.delete([key, *mine.values()])
                else:
                    self.backend.delete([mine[k] for k in mine.keys() - record.sizes.keys()])
                    yield record
            done += len(batch)
            if progress is not None:
                progress(done)
        orphans = [key for found in states.values() for key in found.values()]
        self._count("orphans", len(orphans))
        self.backend.delete(orphans)

    def purge(self, prefix: str = ROOT) -> int:
        """Deletes every key with this prefix; returns their number.

        Raises:
            StoreFailed: some remain.
        """
        count = 0
        for batch in batches(self.backend.keys(prefix), _BATCH):
            self.backend.delete(batch)
            count += len(batch)
        return count

    def _record(self, key: str, value: bytes | None, states: dict[int, str]) -> Record | None:
        if value is None:
            return None
        try:
            body, _ = self._unseal(key, value)
            fields = _metadata(body)
            sizes = {int(k): int(n) for k, n in parsed_json(fields["sizes"]).items() if int(k) in states}
            tensors = load(body)
            record = Record(
                fields["partition"],
                fields["entry"],
                fields["prompt"],
                tensors["vector"],
                sizes,
                float(fields["created"]),
                tensors.get("seen"),
                fields.get("judge", ""),
            )
        except (StateRefused, SafetensorError, KeyError, ValueError, TypeError) as error:
            self._count("refused")
            log.warning("a stored record was refused: %s", error)
            return None
        return record if sizes else None

    def _unseal(self, key: str, value: bytes) -> tuple[bytes, Compression]:
        """Calls :func:`unseal` with the secret, else with the retired ones.

        Raises:
            StateRefused: no secret matches.
        """
        try:
            return unseal(key, value, self._secret)
        except StateRefused:
            for secret in self._retired:
                with suppress(StateRefused):
                    return unseal(key, value, secret)
            raise

    def _count(self, what: str, times: int = 1) -> None:
        with self._lock:
            self.counts[what] += times
        self._metrics.add(metrics_of.STORE_CALLS, times, outcome=what)


def _write_state(state: State, compression: Compression) -> bytes:
    if compression != "int8":
        return state.to_bytes()
    fields = {"step": str(state.step), "steps": str(state.steps), "sampler": state.sampler, "model": state.model}
    return save(quantise(state.latent), metadata=fields)


def _read_state(body: bytes, compression: Compression) -> State:
    if compression != "int8":
        return State.from_bytes(body)
    try:
        fields = _metadata(body)
        latent = restore(load(body))
        return State(latent, int(fields["step"]), int(fields["steps"]), fields["sampler"], fields["model"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StateRefused(f"not a stored state: {type(error).__name__}: {error}") from None


def _metadata(body: bytes) -> dict[str, Any]:
    """The metadata of safetensors, whose format is eight bytes of length, a JSON header, then the tensors."""
    return parsed_json(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]

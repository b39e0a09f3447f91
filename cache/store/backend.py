"""Backends of the store: the interface, and an implementation in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from weir.errors import WeirError


class StoreFailed(WeirError):
    """A call to the store failed; the cache counts it and continues without the store."""

    code = "store_failed"


#: Prefix of the error message when a key has a value that is not a string.
WRONG_TYPE = "WRONGTYPE"


class Backend(Protocol):
    """Bytes by key. Thread-safe.

    Every method may raise :class:`StoreFailed`. The time limits of a backend apply to each answer of the server: a
    method that needs several answers, or an answer in several parts, may take longer.
    """

    def get(self, key: str) -> bytes | None: ...

    def put(self, values: Mapping[str, bytes]) -> None:
        """Writes all values or none, in one round trip."""
        ...

    def delete(self, keys: Sequence[str]) -> None: ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Yields every key with this prefix; keys that are added or removed meanwhile may be missed."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]: ...

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Sizes of the values in bytes; 0 for missing keys."""
        ...

    def used_bytes(self) -> int | None:
        """Memory use of the store; None if it does not report it."""
        ...

    def breakers(self) -> dict[str, bool]:
        """Whether the circuit breakers of reading and writing are open, without calling the store."""
        ...


class MemoryBackend:
    """A backend in this process, for ``weir generate``, for tests, and for a service without Redis."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def put(self, values: Mapping[str, bytes]) -> None:
        with self._lock:
            self._values |= values

    def delete(self, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                self._values.pop(key, None)

    def keys(self, prefix: str) -> Iterator[str]:
        with self._lock:
            return iter([key for key in self._values if key.startswith(prefix)])

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def sizes(self, keys: Sequence[str]) -> list[int]:
        return [len(self._values.get(key, b"")) for key in keys]

    def used_bytes(self) -> int | None:
        with self._lock:
            return sum(map(len, self._values.values()))

    def breakers(self) -> dict[str, bool]:
        return {"read": False, "write": False}


def batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """The keys in lists of at most ``size``."""
    batch: list[str] = []
    for key in keys:
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

"""Where sealed values lie: Redis, or this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from weir.errors import WeirError


class StoreFailed(WeirError):
    """The store did not do what it was asked for; the cache counts it and goes on without."""

    code = "store_failed"


#: How the message begins when a key holds something that is no string.
WRONG_TYPE = "WRONGTYPE"


class Backend(Protocol):
    """Bytes by key. Safe to call from several threads.

    Every method may raise :class:`StoreFailed`. The limits that a backend was made with hold for each answer of the
    server: what takes several, or one that comes in pieces, may take longer.
    """

    def get(self, key: str) -> bytes | None: ...

    def put(self, values: Mapping[str, bytes]) -> None:
        """All or none, in one round trip."""
        ...

    def delete(self, keys: Sequence[str]) -> None: ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key with this prefix; keys that come or go meanwhile may be missed."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]: ...

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes of the values; 0 for what is not there."""
        ...

    def used_bytes(self) -> int | None:
        """Memory that the store takes; None where it does not say."""
        ...

    def breakers(self) -> dict[str, bool]:
        """Whether reading and writing have failed so often that they are not tried for a while; asks nothing."""
        ...


class MemoryBackend:
    """In this process: for ``weir generate``, for tests, and for a service without Redis."""

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

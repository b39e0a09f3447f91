"""Maintenance of a store: statistics, export and import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from cache.policy.partition import Partitions
from cache.store.backend import StoreFailed, batches
from cache.store.store import PREFIX, SealedStore
from weir.errors import ConfigError
from weir.files import written_whole

_MAGIC = b"WEIRCACHE1\n"
_BATCH = 64
#: Largest accepted value: a state of a 4K image takes 16 MiB.
_MOST = 64 * 2**20


def summary(store: SealedStore) -> dict[str, Any]:
    """Numbers of entries and states, and bytes of states, by tenant. Changes nothing.

    Raises:
        StoreFailed: the store cannot be read.
    """
    tenants: dict[str, dict[str, int]] = {}
    total = 0
    for batch in batches(store.backend.keys(PREFIX), 256):
        for key, size in zip(batch, store.backend.sizes(batch), strict=True):
            parts = key.removeprefix(PREFIX).split(":")
            counts = tenants.setdefault(unquote(parts[0].partition("|")[0]), {"entries": 0, "states": 0, "bytes": 0})
            is_state = len(parts) == 3
            counts["states" if is_state else "entries"] += 1
            counts["bytes"] += size if is_state else 0
            total += size if is_state else 0
    return {
        "entries": sum(c["entries"] for c in tenants.values()),
        "states": sum(c["states"] for c in tenants.values()),
        "bytes": total,
        "store_bytes": store.backend.used_bytes(),
        "tenants": tenants,
    }


def export_store(store: SealedStore, path: Path, tenant: str | None = None) -> int:
    """Writes all values of a tenant, or of all tenants, unchanged with their tags; returns the number of values.

    Raises:
        StoreFailed: the store cannot be read.
        ConfigError: the file cannot be written.
    """
    prefix = PREFIX + ("" if tenant is None else Partitions.prefix(tenant))
    count = 0
    with written_whole(path) as draft, draft.open("wb") as file:
        file.write(_MAGIC)
        for batch in batches(store.backend.keys(prefix), _BATCH):
            for key, value in zip(batch, store.backend.get_many(batch), strict=True):
                if value is not None:
                    _write(file, key.encode())
                    _write(file, value)
                    count += 1
    return count


def import_store(store: SealedStore, path: Path) -> tuple[int, int]:
    """Imports the values whose tags are valid; returns the numbers of imported and of refused values.

    Raises:
        StoreFailed: the store refuses them; the message has the number of imported values. A repeated import continues.
        ConfigError: the file is not an export or is truncated; nothing is imported.
    """
    taken = refused = 0
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ConfigError(f"{path}: not an export of a cache; `weir cache export` writes them")
            for _ in _pairs(file, path):  # reads it to the end before anything is imported
                pass
            file.seek(len(_MAGIC))
            for key, value in _pairs(file, path):
                if key.startswith(PREFIX) and store.is_ours(key, value):
                    store.backend.put({key: value})
                    taken += 1
                else:
                    refused += 1
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except StoreFailed as error:
        raise StoreFailed(f"{error.message} ({taken} values were imported; repeat the import to continue)") from None
    return taken, refused


def _pairs(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    while (name := _read(file, path)) is not None:
        value = _read(file, path)
        if value is None:
            raise ConfigError(f"{path}: ends in the middle; export it again")
        yield name.decode(errors="replace"), value


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(len(data).to_bytes(4, "big"))
    file.write(data)


def _read(file: BinaryIO, path: Path) -> bytes | None:
    head = file.read(4)
    if not head:
        return None
    length = int.from_bytes(head, "big")
    data = file.read(length) if len(head) == 4 and length <= _MOST else b""
    if len(head) < 4 or len(data) < length:
        raise ConfigError(f"{path}: ends in the middle; export it again")
    return data

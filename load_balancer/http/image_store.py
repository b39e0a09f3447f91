"""Keeps images that were requested as URLs, until newer ones replace them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

MOST_BYTES = 64 * 2**20


class ImageStore(Protocol):
    """Files by name, bounded by the sum of their sizes; the oldest are removed first."""

    async def put(self, name: str, content: bytes) -> None:
        """Keeps a file, unless it is larger than the whole store."""
        ...

    async def get(self, name: str) -> bytes | None: ...


class LocalImages:
    """An :class:`ImageStore` in the memory of this process."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes = most_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self.size_bytes = 0

    async def put(self, name: str, content: bytes) -> None:
        if len(content) > self._most_bytes:
            return
        self.size_bytes += len(content) - len(self._files.pop(name, b""))
        self._files[name] = content
        while self.size_bytes > self._most_bytes:
            _, oldest = self._files.popitem(last=False)
            self.size_bytes -= len(oldest)

    async def get(self, name: str) -> bytes | None:
        return self._files.get(name)

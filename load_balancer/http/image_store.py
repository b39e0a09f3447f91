"""Images that were asked for as URLs, kept in memory until newer ones push them out."""

from __future__ import annotations

from collections import OrderedDict

MOST_BYTES = 64 * 2**20


class ImageStore:
    """Name → bytes, bounded by the sum of the sizes; the oldest leave first."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes = most_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self.size_bytes = 0

    def put(self, name: str, content: bytes) -> None:
        """Keeps the file; one that is larger than all the room there is, is not kept."""
        if len(content) > self._most_bytes:
            return
        self.size_bytes += len(content) - len(self._files.pop(name, b""))
        self._files[name] = content
        while self.size_bytes > self._most_bytes:
            _, oldest = self._files.popitem(last=False)
            self.size_bytes -= len(oldest)

    def get(self, name: str) -> bytes | None:
        return self._files.get(name)

"""Seals values for the store, with a tag that authenticates a value and its key.

    b"WEIR" · format (1 byte) · compression (1 byte) · HMAC-SHA-256 (32 bytes) · body

The tag covers the key, the two bytes and the body, so a damaged, truncated or foreign value is refused, and so is a
value that was copied to another key. Bodies are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import hmac
import zlib
from typing import Literal

from weir.errors import StateRefused
from weir.states import FORMAT

Compression = Literal["none", "zlib", "int8"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "zlib", "int8")

_MAGIC = b"WEIR"
_HEAD = len(_MAGIC) + 2
_TAG = 32


def seal(key: str, body: bytes, secret: bytes, compression: Compression = "none") -> bytes:
    """Returns the sealed value for a key. ``int8`` bodies are quantised by :mod:`cache.store.quantise` before."""
    packed = zlib.compress(body, 1) if compression == "zlib" else body
    head = _MAGIC + bytes([FORMAT, COMPRESSIONS.index(compression)])
    return head + _tag(key, head, packed, secret) + packed


def unseal(key: str, value: bytes, secret: bytes) -> tuple[bytes, Compression]:
    """Returns the body of a value and its compression.

    Raises:
        StateRefused: the value is invalid, and must not be used.
    """
    head, tag, packed = value[:_HEAD], value[_HEAD : _HEAD + _TAG], value[_HEAD + _TAG :]
    if len(value) < _HEAD + _TAG or head[: len(_MAGIC)] != _MAGIC:
        raise StateRefused("not a value of Weir's")
    if head[-2] != FORMAT:
        raise StateRefused(f"written in format {head[-2]}, this is format {FORMAT}")
    if not hmac.compare_digest(tag, _tag(key, head, packed, secret)):
        raise StateRefused("the tag does not fit: damaged, moved, or written with another secret")
    if head[-1] >= len(COMPRESSIONS):
        raise StateRefused(f"unknown compression {head[-1]}")
    compression = COMPRESSIONS[head[-1]]
    try:
        return (zlib.decompress(packed) if compression == "zlib" else packed), compression
    except zlib.error as error:  # possible only if the secret has leaked
        raise StateRefused(f"cannot be decompressed: {error}") from None


def _tag(key: str, head: bytes, packed: bytes, secret: bytes) -> bytes:
    name = key.encode()
    return hmac.digest(secret, len(name).to_bytes(4, "big") + name + head + packed, "sha256")

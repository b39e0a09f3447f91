"""An engine without models: it sleeps what the profile measured. A pool of these is a cluster on one laptop."""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Sequence

from weir.core import ImageRequest, Role
from weir.profiles import Profile
from workers.engine import Drawn

#: Below this a sleep costs more than it waits for.
_SHORTEST_SLEEP_S = 1e-4
#: A long sleep shows progress this often.
_BEAT_S = 1.0


class EmulatedEngine:
    """Same interface as the real one; every answer says ``emulated``.

    A light image's confidence is one of the profile's measured ones, picked by a hash of prompt and seed: the same
    request always gets the same, and many requests follow the measured distribution.
    """

    emulated = True

    def __init__(self, profile: Profile):
        self.profile = profile
        self.beat = time.monotonic()
        self._latency = {role: profile.variant(role).latency for role in Role}
        self._images = {Role.LIGHT: _placeholder(214), Role.HEAVY: _placeholder(96)}

    def generate(self, role: Role, requests: Sequence[ImageRequest]) -> list[Drawn]:
        self.beat = time.monotonic()
        variant = self.profile.variant(role)
        override = requests[0].steps if role is Role.HEAVY else None
        steps = override or variant.steps
        self._sleep(self._latency[role].at(len(requests)) * steps / variant.steps)
        image = self._images[role]
        return [Drawn(image, self.confidence(r) if role is Role.LIGHT else None, steps) for r in requests]

    def confidence(self, request: ImageRequest) -> float:
        """0…1; uniform when the profile measured none."""
        digest = hashlib.blake2b(f"{request.seed}\n{request.prompt}".encode(), digest_size=6).digest()
        share = int.from_bytes(digest) / 2**48
        measured = self.profile.confidences
        return measured[int(share * len(measured))] if measured else share

    def warm_up(self, batch_size: int) -> None:
        pass

    def probe(self) -> None:
        pass

    def _sleep(self, seconds: float) -> None:
        end = self.beat + seconds
        while (left := end - time.monotonic()) > _SHORTEST_SLEEP_S:
            time.sleep(min(left, _BEAT_S))
            self.beat = time.monotonic()


def _placeholder(gray: int, side: int = 8) -> bytes:
    """A PNG of one shade, written by hand so that an emulated worker needs no imaging library."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([gray]) * side) * side
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

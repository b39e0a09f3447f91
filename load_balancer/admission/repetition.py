"""What repeated answers and polls cost their caller. Pure: the time is an argument."""

from __future__ import annotations

from weir.errors import RateLimited

#: Bytes that a caller may get again each second, and at once after a while without.
BYTES_PER_S = 8 * 2**20
BURST_BYTES = 64 * 2**20
#: Least cost of an answer, for its work.
LEAST_BYTES = 64 * 2**10


class RepetitionQuota:
    """The bytes that every caller gets again: replays of its answers and streams, and the status of its requests.

    They take no GPU, and every caller has the same quota, whatever its key allows.
    """

    def __init__(self) -> None:
        self._callers: dict[str, tuple[float, float]] = {}  # bytes that are left, and when that was

    def check(self, caller: str, now: float) -> None:
        """Checks that a caller may get something again.

        Raises:
            RateLimited: it has used up its quota; the error has the time after which it may.
        """
        left = self._left(caller, now)
        if left <= 0:
            raise RateLimited(
                f"answers that are repeated and polls take at most {BYTES_PER_S / 2**20:g} MiB/s for each key",
                retry_after_s=(LEAST_BYTES - left) / BYTES_PER_S,
            )

    def charge(self, caller: str, size_bytes: int, now: float) -> float:
        """Charges an answer, also beyond the quota. Returns the seconds after which the quota allows the next one."""
        left = self._left(caller, now) - max(LEAST_BYTES, size_bytes)
        self._callers[caller] = left, now
        return max(0.0, -left / BYTES_PER_S)

    def _left(self, caller: str, now: float) -> float:
        left, since = self._callers.get(caller, (float(BURST_BYTES), now))
        return min(float(BURST_BYTES), left + BYTES_PER_S * (now - since))

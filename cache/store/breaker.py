"""A circuit breaker (Nygard, "Release It!"): after several failures in a row, calls to a failing store are skipped.

Pure: the time is an argument.
"""

from __future__ import annotations

import threading


class Breaker:
    """A breaker that allows calls while closed and none while open. After ``open_s`` one call is allowed as a probe,
    and its outcome closes or reopens the breaker.

    Thread-safe.

    Args:
        failures: number of failures in a row that open it.
        open_s: seconds for which it stays open before a probe.
    """

    def __init__(self, failures: int = 5, open_s: float = 1.0):
        self._most = failures
        self._open_s = open_s
        self._failed = 0
        self._probe_at: float | None = None
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._probe_at is not None

    def allows(self, now: float) -> bool:
        """Whether a call is allowed; :meth:`record` has to follow an allowed call."""
        with self._lock:
            if self._probe_at is None:
                return True
            if now < self._probe_at:
                return False
            self._probe_at = (
                now + self._open_s
            )  # one probe at a time; if its outcome is never recorded, there is another one later
            return True

    def record(self, worked: bool, now: float) -> None:
        """Records the outcome of a call."""
        with self._lock:
            if worked:
                self._failed, self._probe_at = 0, None
                return
            self._failed += 1
            if self._failed >= self._most:
                self._probe_at = now + self._open_s

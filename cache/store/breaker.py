"""A circuit breaker (Nygard, "Release It!"): after several failures in a row nobody waits for a store that is down.

Pure: time comes in as an argument.
"""

from __future__ import annotations

import threading


class Breaker:
    """Closed: calls go through. Open: none do. After ``open_s`` one call probes; its outcome closes or opens again.

    Safe to use from several threads.

    Args:
        failures: so many in a row open it.
        open_s: seconds that it stays open before a probe.
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
        """Whether a call may go through; one that may must be followed by :meth:`record`."""
        with self._lock:
            if self._probe_at is None:
                return True
            if now < self._probe_at:
                return False
            self._probe_at = now + self._open_s  # one probe at a time; a lost one is made up for by the next
            return True

    def record(self, worked: bool, now: float) -> None:
        """The outcome of a call."""
        with self._lock:
            if worked:
                self._failed, self._probe_at = 0, None
                return
            self._failed += 1
            if self._failed >= self._most:
                self._probe_at = now + self._open_s

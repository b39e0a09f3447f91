"""The clocks of a service, which come in as arguments, so that tests and simulations set the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clocks(NamedTuple):
    """A clock that measures, and one that tells the time.

    Attributes:
        monotonic: seconds of a monotonic clock, for deadlines, quotas and lifetimes: a wall clock that is set must not
            change one.
        unix: unix time, seconds, for people and for other processes.
    """

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time

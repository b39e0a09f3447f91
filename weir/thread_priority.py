"""Priorities of single threads, which only Linux knows."""

from __future__ import annotations

import os
import sys
import threading


def give_way(niceness: int) -> None:
    """Lets the other threads of this machine go before the calling one; elsewhere than on Linux this does nothing."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

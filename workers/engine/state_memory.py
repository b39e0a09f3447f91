"""A store of denoising states in this process's memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from weir.core import ImageRequest
from weir.states import State, StateStore, state_key

__all__ = ["InMemoryStates", "State", "StateStore", "state_key"]


class InMemoryStates:
    """A :class:`weir.states.StateStore` in memory, for single images and tests. Evicts the oldest state first.

    Args:
        limit: largest number of states to keep; one of SDXL at 1024 px takes 128 KiB.
    """

    def __init__(self, limit: int = 1000):
        self._limit = limit
        self._states: OrderedDict[str, State] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> State | None:
        with self._lock:
            return self._states.get(key)

    def put(self, request: ImageRequest, states: Sequence[State]) -> None:
        with self._lock:
            if request.capture:
                self._states |= {state_key(request.capture, request.id, state.step): state for state in states}
            while len(self._states) > self._limit:
                self._states.popitem(last=False)

    def show(self) -> None: ...

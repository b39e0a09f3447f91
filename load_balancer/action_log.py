"""The record of what operators did."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)

#: Number of actions that are kept.
MOST_ACTIONS = 100


@dataclass(frozen=True, slots=True)
class Action:
    """An action of an operator.

    Attributes:
        at: unix time, seconds.
        who: name of the key; ``anonymous`` without keys.
        action: pin, unpin, policy, scale, drain, return, purge, add-adapter or remove-adapter.
        what: its argument, in words.
        until: unix time at which it ends by itself; None: it does not.
    """

    at: float
    who: str
    action: str
    what: str
    until: float | None = None


class ActionLog:
    """The last actions, and how many there were.

    Args:
        unix_time: unix time, seconds.

    Attributes:
        recent: the last actions, the newest last.
        counts: number of actions since the start, by name.
    """

    def __init__(self, unix_time: Callable[[], float]):
        self.recent: deque[Action] = deque(maxlen=MOST_ACTIONS)
        self.counts: Counter[str] = Counter()
        self._unix_time = unix_time

    def record(self, who: str, action: str, what: str, until: float | None = None) -> None:
        """Records an action of :class:`Action`."""
        self.recent.append(Action(self._unix_time(), who, action, what, until))
        self.counts[action] += 1
        ends = "" if until is None else f" until={until:.0f}"
        log.warning("admin action=%s who=%s what=%r%s", action, who, what, ends)

    def to_dict(self) -> dict[str, Any]:
        """The log as JSON, for the other load balancers."""
        return {"actions": [asdict(action) for action in self.recent], "counts": dict(self.counts)}

    def follow(self, fields: Mapping[str, Any]) -> None:
        """Takes in what another load balancer's :meth:`to_dict` has written."""
        self.recent = deque((Action(**action) for action in fields["actions"]), maxlen=MOST_ACTIONS)
        self.counts = Counter(fields["counts"])

"""The operator's pin of the plan, which ends by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from load_balancer.action_log import ActionLog
from load_balancer.pool.replica_registry import ReplicaRegistry
from weir.clocks import Clocks
from weir.pin import Pin, PinValues, pinned
from weir.plan import Plan

#: Sender of the action that ends a pin in time.
TIME = "end of its time"


@dataclass(frozen=True, slots=True)
class TimedPin:
    """A pin with its end.

    Attributes:
        until: unix time, seconds, for people.
        ends_at: the same on the monotonic clock, which decides.
    """

    pin: Pin
    until: float
    ends_at: float

    def is_over(self, now: float) -> bool:
        """Whether the pin has ended at a time of the monotonic clock."""
        return now >= self.ends_at


class PinControl:
    """Sets and ends the pin.

    Args:
        configured: the plan of the configuration.
        ladder: variants that the replicas hold, from the fastest to the best.
        check: raises a Conflict where no controller runs, which would publish the pinned plan.
    """

    def __init__(
        self,
        registry: ReplicaRegistry,
        configured: Plan,
        ladder: Sequence[str],
        log: ActionLog,
        clocks: Clocks,
        check: Callable[[], object],
    ):
        self._registry = registry
        self._configured = configured
        self._ladder = tuple(ladder)
        self._log = log
        self._clocks = clocks
        self._check = check
        self._timed: TimedPin | None = None

    @property
    def current(self) -> TimedPin | None:
        """The pin in force. Records the end of one whose time is over."""
        if self._timed is not None and self._timed.is_over(self._clocks.monotonic()):
            self._timed = None
            self._log.record(TIME, "unpin", "the policy plans again")
        return self._timed

    def set(self, who: str, values: PinValues, for_s: float, reason: str) -> None:
        """Pins values, or the whole plan in force, for a time; replaces the pin before it.

        Raises:
            InvalidRequest: a value is out of range; nothing changed.
            Conflict: no controller publishes plans, or the plan in force cannot be pinned in parts; nothing changed.
        """
        self._check()
        words = f"pinned by {who}" + (f": {reason}" if reason else "")
        running, ranks = self._registry.plan, self._registry.undrained_ranks
        pin = pinned(values, running, self._configured, self._ladder, ranks, words)
        until = self._clocks.unix() + for_s
        self._timed = TimedPin(pin, until, self._clocks.monotonic() + for_s)
        self._log.record(who, "pin", _shown(values) + (f" ({reason})" if reason else ""), until)

    def end(self, who: str) -> None:
        """Ends the pin; does nothing if there is none."""
        if self.current is not None:
            self._timed = None
            self._log.record(who, "unpin", "the policy plans again")

    def state(self) -> dict[str, Any] | None:
        """The pin in force, for the routes of operators."""
        timed = self.current
        if timed is None:
            return None
        left_s = round(timed.ends_at - self._clocks.monotonic(), 3)
        return {"reason": timed.pin.reason, "until": timed.until, "left_s": left_s, **timed.pin.values.parts}

    def to_dict(self) -> dict[str, Any] | None:
        """The pin in force as JSON, for the other load balancers."""
        timed = self.current
        return None if timed is None else {"pin": timed.pin.to_dict(), "until": timed.until}

    def follow(self, fields: Mapping[str, Any] | None) -> None:
        """Takes in what another load balancer's :meth:`to_dict` has written."""
        self._timed = None
        if fields is not None and (left_s := fields["until"] - self._clocks.unix()) > 0:
            self._timed = TimedPin(Pin.from_dict(fields["pin"]), fields["until"], self._clocks.monotonic() + left_s)


def _shown(values: PinValues) -> str:
    parts = (
        f"{name} " + ", ".join(f"{variant}={value:g}" for variant, value in part.items())
        for name, part in values.parts.items()
    )
    return "; ".join(parts) or "the plan in force"

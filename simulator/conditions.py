"""The conditions of a simulated run: what the service is like, and what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weir.config import RedrawConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What both simulators take besides policy, requests and profile. Times are those of the trace, seconds.

    Attributes:
        redraw: which images of the last variant are generated again.
        direct: the least share of steps saved for which a cache hit enters at the last variant, where the plan does not
            say.
        seed: for plans that choose replicas at random.
        actuation_s: seconds from a decision of the controller to its effect.
        transit_s: a call takes one of these on its way to a replica, and another one on its way back; empty: no time.
        deaths: (time, rank) of replicas that die for good.
        slowdowns: (time, factor) from when on steps take this many times what the profile says.
        fetches: (time, seconds) from when on fetching a state takes this long. Workers wait
            :data:`simulator.engine.FETCH_WAIT_S` at most, and then run from noise. Empty: fetching takes no time, and
            nothing is reported of it.
        balancers: number of load balancers; each request goes to one of them at random.
        told_s: seconds until the other load balancers know what one has sent to a replica, and its reply; None: they
            only have the replicas' reports of their queue lengths. The fast simulator has one load balancer.
    """

    redraw: RedrawConfig = field(default_factory=RedrawConfig)
    direct: float = 0.0
    seed: int = 0
    actuation_s: float = 0.0
    transit_s: Sequence[float] = ()
    deaths: Sequence[tuple[float, int]] = ()
    slowdowns: Sequence[tuple[float, float]] = ()
    fetches: Sequence[tuple[float, float]] = ()
    balancers: int = 1
    told_s: float | None = 0.05

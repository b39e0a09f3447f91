"""What a balancer is made with: its settings, its connections, and its sources of time and randomness."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from load_balancer.admin_controls import ControlTargets
from load_balancer.dispatch.peers import Peering
from load_balancer.runner.cache_client import CacheClient
from weir.cascade import CacheMode
from weir.clocks import Clocks
from weir.config import RedrawConfig, ServiceConfig
from weir.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """The part of a service's configuration that a balancer follows.

    Attributes:
        slo_s: seconds from admission to answer.
        queued: largest number of images in flight.
        drain_s: longest time that a replica which is being stopped takes to finish what it has begun.
        cache_mode: cache mode of requests that do not set one; without effect without a cache.
        direct: smallest share of steps saved for which a cache hit enters at the last variant.
        shadow: images of shadow samples as a share of the requested images.
        redraw: configuration of redraws of the last variant's images.
    """

    slo_s: float
    queued: int
    drain_s: float = 60.0
    cache_mode: CacheMode = "off"
    direct: float = 0.0
    shadow: float = 0.0
    redraw: RedrawConfig = field(default_factory=RedrawConfig)

    @classmethod
    def of(cls, service: ServiceConfig) -> BalancerSettings:
        """The settings of a service file."""
        return cls(
            slo_s=service.slo_s,
            queued=service.limits.queued,
            drain_s=service.drain_s,
            cache_mode=service.cache.mode,
            direct=service.cache.direct,
            shadow=service.cache.shadow,
            redraw=service.redraw,
        )


class Connections(NamedTuple):
    """What a balancer is connected to, besides the pool.

    Attributes:
        cache: None: there is none.
        metrics: where metrics are published; None: nowhere.
        targets: what the operator's controls act on.
        peering: with the other load balancers of the service; None: there are none.
    """

    cache: CacheClient | None = None
    metrics: Metrics | None = None
    targets: ControlTargets = ControlTargets()
    peering: Peering | None = None


class Sources(NamedTuple):
    """Where a balancer takes time and randomness from.

    Attributes:
        draw: uniform in [0, 1), for random decisions of a plan; called once for each request.
        chance: random generator for plans that choose replicas at random; None: one of its own.
    """

    clocks: Clocks = Clocks()
    draw: Callable[[], float] = random.random
    chance: random.Random | None = None

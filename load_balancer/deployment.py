"""The load balancer as a Serve deployment: the ingress of the application."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from load_balancer.admin_controls import ControlTargets
from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys
from load_balancer.http.api_settings import ApiSettings
from load_balancer.lease import Lease
from load_balancer.pool.serve_controller import ServeController
from load_balancer.pool.serve_pool import ServePool
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Connections
from load_balancer.runner.serve_cache_client import ServeCacheClient
from load_balancer.shared.shared_state import SharedState
from load_balancer.shared.store import open_store
from weir import tracing
from weir.actor_process import end, own_process
from weir.config import FamilyConfig, ServiceConfig
from weir.logs import configure
from weir.loopback import keep_to_loopback
from weir.plan import Plan
from weir.profiles import Profile
from weir.telemetry import RayMetrics

log = logging.getLogger(__name__)

#: Seconds between two recordings of the metrics.
RECORD_S = 1.0
#: Longest time that a new load balancer looks for replicas before the first request reaches it, seconds.
LOOK_S = 3.0


class LoadBalancer:
    """The ingress deployment. Its arguments are JSON values, as ``model_dump`` and ``to_dict`` of the classes write
    them."""

    def __init__(
        self,
        pool: DeploymentHandle,
        service: dict[str, Any],
        family: dict[str, Any],
        profile: dict[str, Any] | None,
        plan: dict[str, Any],
        cache: tuple[DeploymentHandle, DeploymentHandle | None] | None = None,
        controller: tuple[str, str] | None = None,
    ):
        """
        Args:
            cache: handles of the cache, and of its encoders if they are processes of their own.
            controller: names of the controller's deployment and application; None where none runs.
        """
        keep_to_loopback()
        configure("load-balancer")
        tracing.configure("load-balancer")
        self._service = ServiceConfig.model_validate(service)
        self._family = FamilyConfig.model_validate(family)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._shared = self._share(_digest(service))
        client = None if cache is None else ServeCacheClient(*cache, wait_s=self._service.cache.lookup_s)
        workers = ServePool(pool)
        serve_controller = None if controller is None else ServeController(*controller)
        self.balancer = Balancer(
            workers,
            Plan.from_dict(plan),
            self._family,
            BalancerSettings.of(self._service),
            profile=None if profile is None else Profile.model_validate(profile),
            connections=Connections(
                cache=client,
                metrics=RayMetrics(),
                targets=ControlTargets(self._service.controller.policy, serve_controller, client, workers),
                peering=None if self._shared is None else self._shared.peering,
            ),
        )
        self._api_keys = self._read_keys()
        self._lease = Lease()
        self._watching: list[asyncio.Task[None]] = []

    def _share(self, digest: str) -> SharedState | None:
        """What this load balancer shares with the others of the service; None where it is the only one.

        Args:
            digest: of the service file, by which they know each other.
        """
        store = open_store(self._service, self._family.name)
        if store is None:
            return None
        return SharedState(store, self._name, self._service.state, digest, process=own_process(), end=end)

    def _read_keys(self) -> ApiKeys:
        """The keys of the service; warns where anyone may generate images without one."""
        http, keys_file = self._service.http, self._service.keys_file
        moderates = self._family.safety_checker is not None or self._service.prompt_filter is not None
        if keys_file is None and not http.is_local:
            log.warning(
                "every client that reaches %s:%d may generate images; set keys_file to require a key",
                http.host,
                http.port,
            )
        moderation = self._service.moderation if moderates else "off"
        return ApiKeys(keys_file, open_admin=http.is_local, moderation=moderation)

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings = ApiSettings.of(self._service, behind_serve=True)
        return create_app(self.balancer, self._family, settings, callers=self._api_keys, shared=self._shared)

    async def lead(self, controller: str) -> bool:
        """Whether this controller may publish; asking renews its lease."""
        if self._shared is not None:
            return await self._shared.take_lease(controller)
        return self._lease.take(controller, time.monotonic())

    async def follow(self, controller: str) -> None:
        """Gives up the lease of a controller that shuts down."""
        if self._shared is not None:
            await self._shared.give_up_lease(controller)
        self._lease.give_up(controller)

    async def counters(self, cursors: dict[str, Sequence[int]]) -> tuple[str, dict[str, Any]]:
        """The name of this load balancer, and :meth:`Balancer.counters`. Runs on the event loop, which owns all state.

        Args:
            cursors: how far the controller has read each load balancer.
        """
        self.balancer.metrics.counters_read(self.balancer.clock())
        return self._name, self.balancer.counters(*cursors.get(self._name, ()))

    async def shadow_sample(self, levels: list[tuple[str, int]]) -> dict[str, Any] | None:
        """See :meth:`Balancer.shadow_sample`; returns the fields of a ``ShadowSample``."""
        sample = await self.balancer.shadow_sample(levels)
        return None if sample is None else asdict(sample)

    async def take(self, plan: dict[str, Any]) -> None:
        """Takes a plan without the pause in routing that a ``user_config`` brings; see ``pool/replica_registry.py``."""
        self.balancer.registry.apply(plan)

    async def reconfigure(self, user_config: Any) -> None:
        """Takes the next plan (Serve calls it with the deployment's ``user_config``); never raises.

        Serve calls it on the event loop that the requests run on, for the first time before the first of them.
        """
        self.balancer.registry.apply(user_config)
        if not self._watching:
            self._watching = [
                asyncio.create_task(self.balancer.registry.watch()),
                asyncio.create_task(self._record_metrics()),
            ]
            if self._shared is not None:
                self._watching.append(
                    asyncio.create_task(self._shared.run(self.balancer.peers, self.balancer.controls))
                )
            with suppress(TimeoutError):  # else the successor of a load balancer would refuse its first requests
                await asyncio.wait_for(self.balancer.registry.found(), LOOK_S)

    async def _record_metrics(self) -> None:
        """Records the state and the counts once a second."""
        while True:
            await asyncio.sleep(RECORD_S)
            try:
                self.balancer.record_metrics()
            except Exception:
                log.exception("the metrics were not recorded")


def _digest(service: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(service, sort_keys=True).encode()).hexdigest()[:16]


ServedLoadBalancer = serve.ingress()(LoadBalancer)

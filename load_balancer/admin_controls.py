"""The operator's controls: pin, policy, replicas, cache and adapters, with a record of all actions.

They live in the load balancer, and end when its process does: then the configured policy plans for all replicas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from load_balancer.action_log import ActionLog
from load_balancer.adapter_catalog import AdapterCatalog
from load_balancer.pin_control import PinControl
from load_balancer.pool.replica_registry import ReplicaRegistry
from weir.adapters import AdapterUse, AdapterWeights
from weir.clocks import Clocks
from weir.errors import Conflict, NotReady
from weir.plan import Plan


class ControllerClient(Protocol):
    """What the controls need of the controller; tests use a fake."""

    async def check_policy(self, name: str) -> None:
        """Checks that a policy can plan for this service.

        Raises:
            InvalidRequest: it is unknown, or the service lacks what it needs; the message says what.
            NotReady: the controller does not answer.
        """
        ...


class CacheControl(Protocol):
    """What the controls need of the cache; tests use a fake."""

    async def statistics(self) -> dict[str, Any]:
        """See :meth:`cache.cache.ApproximateCache.statistics`.

        Raises:
            NotReady: the cache does not answer.
        """
        ...

    async def purge(self, tenant: str | None) -> dict[str, Any]:
        """See :meth:`cache.cache.ApproximateCache.purge`.

        Raises:
            NotReady: the cache or its store does not answer; a part may have been deleted.
        """
        ...


class AdapterCheck(Protocol):
    """What the controls need of the workers; tests use a fake."""

    async def check_adapter(self, use: AdapterUse) -> None:
        """Checks on every replica that an adapter's file can be read and fits the models.

        Raises:
            InvalidRequest: it does not; the message says what is wrong.
            NotReady: no replica answers.
        """
        ...


class ControlTargets(NamedTuple):
    """What the controls of a service act on, besides the pool.

    Attributes:
        policy: name of the configured policy.
        controller: None where none runs, because the policy is ``static``.
        cache: None where there is none.
        workers: None where adapters cannot be checked.
    """

    policy: str = ""
    controller: ControllerClient | None = None
    cache: CacheControl | None = None
    workers: AdapterCheck | None = None


class AdminControls:
    """The controls of one load balancer. Lives on its event loop.

    Args:
        configured: the plan of the configuration.
        ladder: variants that the replicas hold, from the fastest to the best.
        adapters: of the service.

    Attributes:
        replicas: number of replicas of the pool.
        log: what operators did.
        pins: sets and ends the pin.
    """

    def __init__(
        self,
        registry: ReplicaRegistry,
        configured: Plan,
        ladder: Sequence[str],
        adapters: AdapterCatalog,
        targets: ControlTargets = ControlTargets(),
        *,
        clocks: Clocks = Clocks(),
    ):
        self.policy = targets.policy
        self.replicas = len(configured.assignments)
        self.log = ActionLog(clocks.unix)
        self._registry = registry
        self._controller = targets.controller
        self.pins = PinControl(registry, configured, ladder, self.log, clocks, self._need_controller)
        self._cache = targets.cache
        self._adapters = adapters
        self._workers = targets.workers

    # -------------------------------------------------------------------------------------------------- plan

    async def switch_policy(self, who: str, name: str) -> None:
        """Lets another policy plan; the plan in force stays until its first one.

        Raises:
            InvalidRequest: the policy is unknown, or the service lacks what it needs; nothing changed.
            Conflict: no controller runs; nothing changed.
            NotReady: the controller does not answer; nothing changed.
        """
        await self._need_controller().check_policy(name)
        if name != self.policy:
            before, self.policy = self.policy, name
            self.log.record(who, "policy", f"{name} instead of {before}")

    # -------------------------------------------------------------------------------------- replicas and cache

    def scale(self, who: str, replicas: int) -> None:
        """Gives the pool another number of replicas.

        The controller publishes a plan for them. Ray Serve starts those that are missing where the cluster has room, or
        lets those that are too many finish their images.

        Raises:
            Conflict: no controller runs; nothing changed.
        """
        self._need_controller()
        if replicas != self.replicas:
            before, self.replicas = self.replicas, replicas
            self.log.record(who, "scale", f"{replicas} replicas instead of {before}")

    def drain(self, who: str, replica: str, *, force: bool = False) -> None:
        """Drains a replica; see :meth:`ReplicaRegistry.drain`."""
        if self._registry.drain(replica, force=force):
            self.log.record(who, "drain", replica)

    def restore(self, who: str, replica: str) -> None:
        """Returns a drained replica to work; see :meth:`ReplicaRegistry.restore`."""
        if self._registry.restore(replica):
            self.log.record(who, "return", replica)

    async def cache_statistics(self) -> dict[str, Any]:
        """Statistics of the running cache.

        Raises:
            Conflict: the service has no cache.
            NotReady: the cache does not answer.
        """
        return await self._need_cache().statistics()

    async def purge(self, who: str, tenant: str | None) -> dict[str, Any]:
        """Deletes what a tenant has cached, or everything; returns how much was deleted.

        Raises:
            Conflict: the service has no cache.
            NotReady: the cache does not answer, or its store does not.
        """
        deleted = await self._need_cache().purge(tenant)
        self.log.record(who, "purge", "all tenants" if tenant is None else f"tenant {tenant}")
        return deleted

    # ---------------------------------------------------------------------------------------------- adapters

    async def add_adapter(self, who: str, name: str, weights: AdapterWeights) -> None:
        """Adds an adapter, which requests may use from now on.

        Raises:
            Conflict: an adapter has this name; nothing changed.
            InvalidRequest: it does not fit the models, or cannot be read; nothing changed.
            NotReady: no replica answers; nothing changed.
        """
        self._adapters.check_new(name)
        if self._workers is None:
            raise NotReady("no replica can check the adapter; try again")
        await self._workers.check_adapter(AdapterUse(name, 1.0, weights))
        self._adapters.add(name, weights)
        self.log.record(who, "add-adapter", f"{name} of {weights.reference}")

    def remove_adapter(self, who: str, name: str) -> None:
        """Removes an adapter; see :meth:`AdapterCatalog.remove`."""
        self._adapters.remove(name)
        self.log.record(who, "remove-adapter", name)

    # ------------------------------------------------------------------------------------------------ reports

    def orders(self) -> dict[str, Any]:
        """What the controller has to follow, as JSON."""
        timed = self.pins.current
        pin = None if timed is None else timed.pin.to_dict()
        return {"policy": self.policy, "size": self.replicas, "pin": pin}

    def state(self) -> dict[str, Any]:
        """The controls as they are, as JSON; actions are the newest first."""
        pin = self.pins.state()
        return {
            "policy": self.policy,
            "size": self.replicas,
            "pin": pin,
            "replicas": self._registry.replicas(),
            "adapters": {name: asdict(weights) for name, weights in self._adapters.items()},
            "actions": [asdict(action) for action in reversed(self.log.recent)],
        }

    # ------------------------------------------------------------------------------------- other load balancers

    def to_dict(self) -> dict[str, Any]:
        """What the other load balancers have to follow, as JSON."""
        pin = self.pins.to_dict()
        return {
            "policy": self.policy,
            "replicas": self.replicas,
            "pin": pin,
            "drained": sorted(self._registry.drained),
            "adapters": self._adapters.to_dict(),
            **self.log.to_dict(),
        }

    def follow(self, fields: Mapping[str, Any]) -> None:
        """Takes in what another load balancer's :meth:`to_dict` has written."""
        self.policy, self.replicas = fields["policy"], fields["replicas"]
        self.pins.follow(fields["pin"])
        self._registry.set_drained(fields["drained"])
        self._adapters.follow(fields.get("adapters", {}))  # absent in what an older version has written
        self.log.follow(fields)

    def _need_controller(self) -> ControllerClient:
        if self._controller is None:
            raise Conflict(
                "this service keeps the plan of its file, and no controller runs that could publish another one; set "
                "controller.policy in the service file to a policy other than static"
            )
        return self._controller

    def _need_cache(self) -> CacheControl:
        if self._cache is None:
            raise Conflict("this service has no cache; set cache.mode in the service file")
        return self._cache

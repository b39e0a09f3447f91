"""The Serve application of the live controller: it observes through the load balancer's handle and publishes by PUT.

Serve routes no request to a replica, the load balancer included, while the replica applies a new ``user_config``. A
plan that only moves the threshold, as most do, is therefore sent to the load balancer by a call. A restarted load
balancer has the plan of the last PUT until the controller notices.

A declarative configuration refers to it by ``import_path: deploy.control:build`` with ``args: {config: <service
file>}``. Serve restarts it when it dies; the plan in force stays meanwhile.
"""

# Annotations are not postponed here: Serve reads the type of the argument of build.

import asyncio
import threading
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from controller.counter_sum import CounterSum
from controller.counters import Counters
from controller.loop import Controller, ServiceLink
from deploy.policy import level_head, policy_of, refusal
from deploy.publish import Publisher
from deploy.serve_config import APPLICATION, BALANCER, CONTROLLER, ON_HEAD, located
from weir import tracing
from weir.config import FamilyConfig, ServiceConfig, load_service
from weir.errors import ConfigError, NotReady
from weir.logs import configure
from weir.loopback import keep_to_loopback
from weir.plan import Plan
from weir.prompt_levels import WatchedHead
from weir.ray_private import dashboard_address
from weir.telemetry import RayMetrics

#: Timeout of calls to the load balancer, seconds; the next step calls it again.
TIMEOUT_S = 5.0
#: Time for the last step of a controller that ends, and for its release of the lease, seconds. The load balancer, which
#: both call, may have ended before.
LEAVE_S = 1.0
#: Timeout of each of the two calls of a publication, seconds: both end before another controller could take the lease.
DASHBOARD_TIMEOUT_S = 4.0
#: Timeout of a shadow sample, seconds. It is long because a sample has a lower priority than all requests.
SAMPLE_TIMEOUT_S = 600.0


class ControlArgs(BaseModel):
    """``args`` of the application. A change of them restarts only this application."""

    model_config = ConfigDict(extra="forbid")

    config: str
    digest: str = ""  # not read; it changes with the file and makes Serve restart the application


def build(args: ControlArgs) -> Application:
    """Builds the application that plans for the service of a file.

    Raises:
        ConfigError: the policy is ``static``, which needs no controller, or the service lacks a measurement that the
            policy needs; the message names the file, the key and the remedy.
    """
    service, family = load_service(located(args.config))
    if not service.controlled:
        raise ConfigError(f"{args.config}: controller.policy is static: there is nothing to plan")
    policy_of(service, level_head(service))  # raises now instead of once a second
    if service.cache.shadow:
        from quality.suite import family_suite

        family_suite(family)  # raises now instead of at the first shadow sample
    controller = serve.deployment(
        name=CONTROLLER,
        num_replicas=1,
        ray_actor_options=ON_HEAD,
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},
    )(ControlLoop)
    return controller.bind(service.model_dump(mode="json"), family.model_dump(mode="json"))


class Edges:
    """Calls of a controller to the load balancer and to Serve, on the cluster of this process."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        self._counters = CounterSum()

    @cached_property
    def _balancer(self) -> DeploymentHandle:
        return serve.get_deployment_handle(BALANCER, app_name=APPLICATION)

    def lead(self) -> bool:
        """Whether this controller may publish; False while there is no load balancer yet."""
        try:
            balancer = self._balancer
        except KeyError:
            return False
        return balancer.lead.remote(self._name).result(timeout_s=TIMEOUT_S)

    def follow(self) -> None:
        """Releases the lease, so that the next controller need not wait for its expiry."""
        self._balancer.follow.remote(self._name).result(timeout_s=LEAVE_S)

    def look(self, before: Counters | None) -> Counters:
        """The sum of the counters of all load balancers that answer.

        Raises:
            NotReady: none answers, or one hangs.
        """
        if before is None:
            self._counters = CounterSum()
        asked = self._balancer.broadcast("counters", self._counters.cursors())
        answers = asked.results(timeout_s=TIMEOUT_S, return_exceptions=True)
        if any(isinstance(answer, TimeoutError) for answer in answers):
            # Serve would wait for it while it gives out a plan, and route nothing to the workers meanwhile.
            raise NotReady("a load balancer does not answer; no plan is published until it does or is replaced")
        found = {answer[0]: Counters.from_dict(answer[1]) for answer in answers if isinstance(answer, tuple)}
        if not found:
            raise NotReady(f"no load balancer answers: {answers}")
        return self._counters.add(found)

    def sample(self, levels: Sequence[tuple[str, int]]) -> dict[str, Any] | None:
        """Requests a shadow sample at these variants and steps; None when there is no spare time for one."""
        return self._balancer.shadow_sample.remote(levels).result(timeout_s=SAMPLE_TIMEOUT_S)

    def publish(self, plan: Plan, running: Plan) -> None:
        if plan.assignments == running.assignments:
            self._balancer.broadcast("take", plan.to_dict()).results(timeout_s=TIMEOUT_S, return_exceptions=True)
        else:
            Publisher(dashboard(), DASHBOARD_TIMEOUT_S).actuate(plan)


def controller(service: ServiceConfig, edges: Edges) -> Controller:
    """Makes the controller of a service.

    Raises:
        ConfigError: as :func:`policy_of`.
    """
    levels = None if service.cache.levels is None else WatchedHead(Path(service.cache.levels))
    return Controller(
        lambda name, replicas: policy_of(service, levels.head if levels else None, name, replicas),
        service.plan.size,
        ServiceLink(edges.look, edges.publish, edges.lead),
        metrics=RayMetrics(),
        outdated=levels.renewed if levels else lambda: False,
    )


class ControlLoop:
    """Deployment that runs a controller on its own thread and, when the configuration enables shadow samples, the check
    of the level head on another one.

    Args:
        service, family: a ``ServiceConfig`` and a ``FamilyConfig`` as JSON.
    """

    def __init__(self, service: dict[str, Any], family: dict[str, Any]):
        keep_to_loopback()
        configure("controller")
        tracing.configure("controller")
        self._edges, self._stop = Edges(), threading.Event()
        self._service = config = ServiceConfig.model_validate(service)
        self._family = FamilyConfig.model_validate(family)
        it = controller(config, self._edges)
        self._thread = threading.Thread(target=it.run, args=(self._stop,), name="controller", daemon=True)
        self._thread.start()
        if config.cache.shadow:
            from deploy.shadow import ShadowLoop  # imported here because it loads torch

            check = ShadowLoop(config, self._family, self._edges.sample, RayMetrics())
            threading.Thread(target=check.run, args=(self._stop,), name="shadow", daemon=True).start()

    async def check_policy(self, name: str) -> str:
        """See :func:`deploy.policy.refusal`."""
        return await asyncio.to_thread(refusal, name, self._service, self._family.keys)

    def check_health(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the control loop has ended")

    async def __del__(self) -> None:
        """Stops the loop and releases the lease. Serve calls it before the process ends.

        While a step is still under way, the lease is kept and expires by itself: the step may be about to publish.
        """
        self._stop.set()
        await asyncio.to_thread(self._thread.join, LEAVE_S)
        if not self._thread.is_alive():
            await asyncio.to_thread(self._edges.follow)


def dashboard() -> str:
    """Returns the HTTP address of the dashboard of the cluster that this process belongs to.

    Raises:
        NotReady: the cluster has no dashboard.
    """
    address = dashboard_address()
    if not address:
        raise NotReady("this cluster has no dashboard; start Ray with --include-dashboard=true")
    return f"http://{address}"

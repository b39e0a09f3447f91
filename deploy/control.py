"""The live controller as a Serve application of its own: it sees through the load balancer's handle and acts by PUT.

Serve routes nothing to a replica while it takes in a new ``user_config``, the load balancer included. So a plan that
only moves the threshold, as most do, goes to the load balancer by a call, and a load balancer that starts again gets
the plan of the last PUT until the controller sees it there.

Named in a declarative configuration as ``import_path: deploy.control:build`` with ``args: {config: <service file>}``.
Serve starts it again when it dies; the plan in force stays meanwhile.
"""

# Annotations stay objects here: Serve looks at the type of build's argument to read it.

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

from controller.counters import Counters
from controller.loop import Controller
from deploy.policy import policy_of
from deploy.publish import Publisher
from deploy.serve_config import APPLICATION, BALANCER, CONTROLLER, ON_HEAD, located
from weir.config import FamilyConfig, ServiceConfig, load_service
from weir.errors import ConfigError, NotReady
from weir.loopback import keep_to_loopback
from weir.plan import Plan
from weir.prompt_levels import LevelHead, WatchedHead
from weir.ray_private import dashboard_address
from weir.telemetry import RayMetrics

#: A load balancer that does not answer in time is asked again.
TIMEOUT_S = 5.0
#: Of each of the two calls of a publication: both are over before another controller could have taken the lease.
DASHBOARD_TIMEOUT_S = 4.0
#: A shadow sample lets all other requests go first.
SAMPLE_TIMEOUT_S = 600.0


class ControlArgs(BaseModel):
    """``args`` of the application. A change of them restarts it, and nothing else."""

    model_config = ConfigDict(extra="forbid")

    config: str
    digest: str = ""  # not read: it changes when the file does, and the application with it


def build(args: ControlArgs) -> Application:
    """Builds the application that plans for the service of a file.

    Raises:
        ConfigError: names the file, the key and the remedy: the policy ``static`` has nothing to do here, and others
            may need what the service does not have.
    """
    service, family = load_service(located(args.config))
    if not service.controlled:
        raise ConfigError(f"{args.config}: controller.policy is static: there is nothing to plan")
    head = None if service.cache.levels is None else LevelHead.load(Path(service.cache.levels))
    policy_of(service, head)  # refuses now what would fail once a second
    if service.cache.shadow:
        from quality.suite import family_suite

        family_suite(family)  # refuses now what would fail in the middle of the night
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
    """What a controller sees and moves, on the cluster that this process is connected to."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    @cached_property
    def _balancer(self) -> DeploymentHandle:
        return serve.get_deployment_handle(BALANCER, app_name=APPLICATION)

    def lead(self) -> bool:
        """Whether this controller may publish; none may while there is no load balancer yet."""
        try:
            balancer = self._balancer
        except KeyError:
            return False
        return balancer.lead.remote(self._name).result(timeout_s=TIMEOUT_S)

    def follow(self) -> None:
        """The next controller need not wait."""
        self._balancer.follow.remote(self._name).result(timeout_s=TIMEOUT_S)

    def look(self, before: Counters | None) -> Counters:
        known = (before.judged, before.batches_run, before.fetched, before.verdicts) if before else (0, 0, 0, 0)
        return Counters.from_dict(self._balancer.counters.remote(*known).result(timeout_s=TIMEOUT_S))

    def sample(self, levels: Sequence[tuple[str, int]]) -> dict[str, Any] | None:
        """A shadow sample at these variants and steps, if there is time for one."""
        return self._balancer.shadow_sample.remote(levels).result(timeout_s=SAMPLE_TIMEOUT_S)

    def publish(self, plan: Plan, running: Plan) -> None:
        if plan.assignments == running.assignments:
            self._balancer.take.remote(plan.to_dict()).result(timeout_s=TIMEOUT_S)
        else:
            Publisher(dashboard(), DASHBOARD_TIMEOUT_S).actuate(plan)


def controller(service: ServiceConfig, edges: Edges) -> Controller:
    """The controller of a service.

    Raises:
        ConfigError: as :func:`policy_of`.
    """
    levels = None if service.cache.levels is None else WatchedHead(Path(service.cache.levels))
    return Controller(
        lambda: policy_of(service, levels.head if levels else None),
        service.plan.size,
        outdated=levels.renewed if levels else lambda: False,
        look=edges.look,
        publish=edges.publish,
        metrics=RayMetrics(),
        lead=edges.lead,
    )


class ControlLoop:
    """Runs a controller on a thread of its own until it is shut down, and beside it the level head's check where the
    configuration asks for shadow samples. Args are a ``ServiceConfig`` and a ``FamilyConfig`` as JSON."""

    def __init__(self, service: dict[str, Any], family: dict[str, Any]):
        keep_to_loopback()
        self._edges, self._stop = Edges(), threading.Event()
        config = ServiceConfig.model_validate(service)
        it = controller(config, self._edges)
        self._thread = threading.Thread(target=it.run, args=(self._stop,), name="controller", daemon=True)
        self._thread.start()
        if config.cache.shadow:
            from deploy.shadow import ShadowLoop  # services without it do not load torch

            check = ShadowLoop(config, FamilyConfig.model_validate(family), self._edges.sample, RayMetrics())
            threading.Thread(target=check.run, args=(self._stop,), name="shadow", daemon=True).start()

    def check_health(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the control loop has ended")

    async def __del__(self) -> None:
        """Serve calls it before the process ends: nothing is published after that."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._edges.follow)


def dashboard() -> str:
    """The http address of the dashboard of the cluster that this process belongs to.

    Raises:
        NotReady: it has none.
    """
    address = dashboard_address()
    if not address:
        raise NotReady("this cluster has no dashboard; start Ray with --include-dashboard=true")
    return f"http://{address}"

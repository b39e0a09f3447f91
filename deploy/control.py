"""The edges of the live controller: it sees through the load balancer's handle and acts by the publisher's PUT.

Serve routes nothing to a replica while it takes in a new ``user_config``, the load balancer included. So a plan that
only moves the threshold, as most do, goes to the load balancer by a call, and a load balancer that starts anew gets
the plan of the last PUT until the controller sees it there.
"""

from __future__ import annotations

import threading
from pathlib import Path

from ray import serve

from cache.worth import resumed_share
from controller.counters import Counters
from controller.loop import Controller
from controller.policies import make_policy
from controller.setting import Setting
from deploy.app import BALANCER
from deploy.publish import APPLICATION, Publisher, render
from weir.config import ServiceConfig
from weir.core import Plan
from weir.profiles import load_profile
from weir.prompt_levels import LevelHead
from weir.telemetry import RayMetrics

#: A load balancer or a dashboard that does not answer in time is asked again; `weir down` waits no longer for them.
TIMEOUT_S = 5.0
DASHBOARD_TIMEOUT_S = 15.0


def controller(
    service: ServiceConfig, config_path: Path | str, publisher: Publisher, host: str, port: int
) -> Controller:
    """The controller of a service that runs on the cluster this process is connected to.

    Raises:
        ConfigError: the profile is not what it should be.
    """
    profile = service.profile or service.pool.emulate
    assert profile is not None  # the configuration was checked
    size = service.plan.light_replicas + service.plan.heavy_replicas
    levels = None if service.cache.levels is None else LevelHead.load(Path(service.cache.levels))
    resumed = resumed_share(service.cache.selector) if service.cache.mode != "off" else 1.0
    setting = Setting.of(load_profile(profile), size, service.slo_s, levels, resumed)
    balancer = serve.get_deployment_handle(BALANCER, app_name=APPLICATION)

    def look(before: Counters | None) -> Counters:
        told = (before.judged, before.batches_run, before.fetched) if before else (0, 0, 0)
        return Counters.from_dict(balancer.counters.remote(*told).result(timeout_s=TIMEOUT_S))

    def publish(plan: Plan, running: Plan) -> None:
        if plan.assignments == running.assignments:
            balancer.take.remote(plan.to_dict()).result(timeout_s=TIMEOUT_S)
        else:
            publisher.put(render(config_path, plan, host=host, port=port))

    return Controller(
        lambda: make_policy(service.controller.policy, setting),
        size,
        look=look,
        publish=publish,
        metrics=RayMetrics(),
    )


def start(it: Controller, stop: threading.Event) -> threading.Thread:
    """Runs it on a thread of its own until ``stop``; join the thread before the service is taken down."""
    thread = threading.Thread(target=it.run, args=(stop,), name="controller", daemon=True)
    thread.start()
    return thread

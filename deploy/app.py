"""The Serve application that serves images: the load balancer, the pool of workers and the cache.

A declarative configuration refers to it by ``import_path: deploy.app:build`` with ``args: {config: <service file>}``.
"""

# Annotations are not postponed here: Serve reads the type of the argument of build.

import logging
from functools import partial
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from cache.encoder_service import EncoderService
from cache.factory import check_redis, open_store
from cache.service import CacheService
from deploy.serve_config import (
    BALANCER,
    CACHE,
    CONTROLLER,
    CONTROLLER_APPLICATION,
    ENCODER,
    POOL,
    located,
    most_on_one_node,
    placement,
)
from load_balancer.deployment import ServedLoadBalancer
from weir.config import FamilyConfig, PoolConfig, ServiceConfig, load_service
from weir.profiles import load_profile
from weir.telemetry import RayMetrics
from workers.replica import Worker

log = logging.getLogger(__name__)

#: Limit of concurrent requests. Replicas queue and batch themselves, so Serve must not hold requests back.
UNLIMITED = 100_000
#: Timeout of a health check, seconds. Serve replaces the load balancer or the cache after three timeouts.
HUNG_S = 10
#: The same for one of several load balancers or encoders: the others answer meanwhile, so a wrong guess costs little.
HUNG_OF_SEVERAL_S = 2
#: Request router of the pool. Serve restarts the whole application when this value changes.
ROUTER = {"request_router_class": "load_balancer.pool.router.ChosenReplicaRouter"}
#: Logging configuration without an access log, which would cost more than the calls.
QUIET = {"enable_access_log": False}


class AppArgs(BaseModel):
    """``args`` of the application. A change of them restarts it; a plan is a ``user_config``, which does not."""

    model_config = ConfigDict(extra="forbid")

    config: str
    digest: str = ""  # not read; it changes with the file and makes Serve restart the application


def build(args: AppArgs) -> Application:
    """Builds the application of a service file.

    Raises:
        ConfigError: the file is invalid, or its Redis unsuitable; the message names the file, the key and the remedy.
    """
    service, family = load_service(located(args.config))
    if warning := check_redis(service.cache):
        log.warning(warning)
    plan = service.plan.plan(family.keys).to_dict()
    profile = service.profile or service.pool.emulate
    cached = service.cache.mode != "off"
    pool = serve.deployment(
        name=POOL,
        num_replicas=len(plan["assignments"]),
        user_config=plan,
        ray_actor_options=actor_options(service.pool),
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=service.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        request_router_config=ROUTER,
        logging_config=QUIET,
    )(Worker).bind(
        family.model_dump(mode="json"),
        plan,
        service.pool.emulate,
        partial(open_store, service.cache, metrics=RayMetrics()) if cached else None,
        service.cache.fetch_s,
        RayMetrics(),
    )
    spread: dict[str, Any] = {}
    if service.on_every_node:
        spread["max_replicas_per_node"] = most_on_one_node(service.balancers, nodes())
    balancer = serve.deployment(
        name=BALANCER,
        num_replicas=service.balancers,
        user_config=plan,
        ray_actor_options=placement(service)[BALANCER],
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=service.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=HUNG_S if service.balancers == 1 else HUNG_OF_SEVERAL_S,
        logging_config=QUIET,
        **spread,
    )(ServedLoadBalancer)
    return balancer.bind(
        pool,
        service.model_dump(mode="json"),
        family.model_dump(mode="json"),
        load_profile(profile, family.keys, family.size).model_dump(mode="json") if profile else None,
        plan,
        cache(service, family) if cached else None,
        (CONTROLLER, CONTROLLER_APPLICATION) if service.controlled else None,
    )


def cache(service: ServiceConfig, family: FamilyConfig) -> tuple[Application, Application | None]:
    """Builds the cache, and its encoders if they are processes of their own."""
    configs = service.cache.model_dump(mode="json"), family.model_dump(mode="json")
    places = placement(service)
    common: dict[str, Any] = {
        "max_ongoing_requests": UNLIMITED,
        "health_check_period_s": 2,
        "logging_config": QUIET,
    }
    index = serve.deployment(
        name=CACHE, num_replicas=1, ray_actor_options=places[CACHE], health_check_timeout_s=HUNG_S, **common
    )
    bound = index(CacheService).bind(*configs, judge)
    replicas = service.cache.encoder_replicas
    if not replicas:
        return bound, None
    hung_s = HUNG_S if replicas == 1 else HUNG_OF_SEVERAL_S
    encoders = serve.deployment(
        name=ENCODER, num_replicas=replicas, ray_actor_options=places[ENCODER], health_check_timeout_s=hung_s, **common
    )
    return bound, encoders(EncoderService).bind(*configs, bound)


def nodes() -> int:
    """Number of nodes of the cluster that the application is built on; 1 without a cluster."""
    return sum(it["Alive"] for it in ray.nodes()) if ray.is_initialized() else 1


def judge(family: FamilyConfig) -> Any:
    """Loads the judge of the family in the process of the cache."""
    from workers.models.judges import family_judge

    return family_judge(family)


def actor_options(pool: PoolConfig) -> dict[str, object]:
    """Returns the Ray resources that one replica of the pool requires."""
    return {
        "num_cpus": pool.cpus_per_replica,
        "num_gpus": pool.gpus_per_replica,
        "resources": dict(pool.resources),
    }

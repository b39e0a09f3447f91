"""Faults that are injected into a service, one at a time, each with a check that the service has recovered."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from cache.store.redis_server import RedisServer
from deploy.serve_config import BALANCER, CACHE
from testing.processes import actor, nodes_of, program
from testing.testbed import HEAVY, LIGHT, PROMPTS, Testbed, plan
from weir import plan as plans

#: Duration of a temporary fault, and time between two role changes, seconds.
LASTS_S, FLIP_S = 5.0, 5.0
#: Whether the service has recovered.
Recovered = Callable[[], bool]
#: Returns the process id of the victim.
Find = Callable[[Testbed, random.Random], int]
#: Calls its third argument immediately before it injects the fault; reverts a temporary fault before it returns.
Inject = Callable[[Testbed, random.Random, Callable[[], None]], Recovered]


def replica(role: str) -> Find:
    """Selects a random replica of a role, or any replica when the role has none."""
    return lambda bed, chance: chance.choice(bed.pids(role))


def any_of(deployment: str) -> Find:
    """Selects a random replica of a deployment."""
    return lambda bed, chance: chance.choice(sorted(bed.running(deployment).values()))


def kill(find: Find) -> Inject:
    """Kills one process of the service (SIGKILL)."""

    def inject(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
        victim = find(bed, chance)
        on_inject()
        os.kill(victim, signal.SIGKILL)
        return lambda: bed.is_whole(without=[victim])

    return inject


def hang(find: Find, *, flipped: bool = False) -> Inject:
    """Stops a process without ending it (SIGSTOP); with ``flipped`` immediately before a new plan is published."""

    def inject(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
        victim = find(bed, chance)
        on_inject()
        os.kill(victim, signal.SIGSTOP)
        if flipped:
            bed.publish(plan(bed.next_version(), LIGHT - 1, HEAVY + 1))
        return lambda: bed.is_whole(without=[victim])

    return inject


def poison(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Makes a replica fail every image at once, so that it looks idle and attracts work. The victim is the replica that
    gets the next image when all are idle."""
    import ray

    process = bed.replicas(plans.LIGHT)[0]["process"]
    actor = ray.get_actor(process["actor"], namespace="serve")
    on_inject()
    ray.get(actor.__ray_call__.remote(_break))
    return lambda: bed.is_whole(without=[process["pid"]])


def _break(replica: Any) -> None:
    """Breaks the engine of a replica; runs in its process."""

    def fail(samples: object) -> None:
        raise RuntimeError("the device is broken")

    replica._replica_impl._user_callable_wrapper.user_callable.engine.step = fail


def lose_controller(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Kills the controller and starts it again later."""
    (controller,) = bed.controllers.running
    on_inject()
    bed.controllers.stop(controller, signal.SIGKILL)
    time.sleep(LASTS_S)
    bed.controllers.start()
    return bed.is_whole


def front_door(bed: Testbed, chance: random.Random) -> int:
    """Selects the process to which clients connect: HAProxy before several load balancers, else Serve's proxy."""
    return program("haproxy").pid if bed.balancers > 1 else actor("ProxyActor")


def lose_gcs(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Kills Ray's GCS. The service is whole when it has taken in a new plan, which goes through the GCS."""
    victim = program("gcs_server")
    on_inject()
    victim.kill()
    bed.wait(lambda: program("gcs_server").pid != victim.pid)

    def publishes() -> bool:
        bed.publish(plan(bed.next_version()))
        return True

    bed.wait(publishes)
    return bed.is_whole


def lose_node(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Kills the raylet of a node with all its processes; another node joins later."""
    node = chance.choice(nodes_of(os.getpid()))
    dead = [process.pid for process in node.children()]
    on_inject()
    node.kill()
    time.sleep(LASTS_S)
    bed.start_node()
    return lambda: bed.is_whole(without=dead)


def two_controllers(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Runs a second controller for a while."""
    on_inject()
    second = bed.controllers.start()
    time.sleep(2 * LASTS_S)
    bed.controllers.stop(second)
    return bed.is_whole


def flip(times: int) -> Inject:
    """Changes the roles of replicas from light to heavy and back several times."""

    def inject(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
        on_inject()
        for number in range(times):
            bed.publish(plan(bed.next_version(), *((3, 1) if number % 2 else (1, 3))))
            time.sleep(FLIP_S)
        bed.publish(plan(bed.next_version()))
        return bed.is_whole

    return inject


def hits(bed: Testbed) -> bool:
    """Whether a request resumes from a cached state again."""
    return any(bed.ask(PROMPTS[0], model="bed/heavy")["path"] == "cache" for _ in range(2))


def redis_down(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Kills Redis and starts an empty one later."""
    assert bed.redis is not None
    password, _, address = bed.redis.url.removeprefix("redis://:").partition("@")
    on_inject()
    bed.redis.process.kill()
    bed.redis.stop()
    time.sleep(LASTS_S)
    port = int(address.partition("/")[0].rpartition(":")[2])
    bed.redis = RedisServer.start(port=port, password=password)
    return lambda: hits(bed)


def redis_paused(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Stops Redis for a while: it accepts connections and does not answer."""
    assert bed.redis is not None
    on_inject()
    os.kill(bed.redis.process.pid, signal.SIGSTOP)
    time.sleep(LASTS_S)
    os.kill(bed.redis.process.pid, signal.SIGCONT)
    return lambda: hits(bed)


def redis_flushed(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Deletes all states from Redis, while the index still lists them."""
    assert bed.redis is not None
    with redis.Redis.from_url(bed.redis.url) as client:
        on_inject()
        client.flushall()
    return lambda: hits(bed)


def redis_full(bed: Testbed, chance: random.Random, on_inject: Callable[[], None]) -> Recovered:
    """Makes Redis refuse every write for a while."""
    assert bed.redis is not None
    with redis.Redis.from_url(bed.redis.url) as client:
        on_inject()
        client.config_set("maxmemory", 1)
        time.sleep(LASTS_S)
        client.config_set("maxmemory", 0)
    return lambda: hits(bed)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        what: description in the table.
        inject: injects the fault.
        alone: whether the live controller is stopped, because it would plan against the fault.
        front_door: whether the victim holds the connections of the clients, which end with it.
    """

    what: str
    inject: Inject
    alone: bool = False
    front_door: bool = False


def faults(flips: int) -> dict[str, Fault]:
    """Returns all faults by name; ``flips`` is the number of role changes of one of them."""
    return {
        "light": Fault("kill -9 of a light replica", kill(replica(plans.LIGHT))),
        "heavy": Fault("kill -9 of a heavy replica", kill(replica(plans.HEAVY))),
        "cache": Fault("kill -9 of the cache", kill(any_of(CACHE))),
        "balancer": Fault("kill -9 of a load balancer", kill(any_of(BALANCER))),
        "proxy": Fault("kill -9 of the front door", kill(front_door), front_door=True),
        "serve": Fault("kill -9 of Serve's controller", kill(lambda bed, _: actor("ServeController"))),
        "gcs": Fault("kill -9 of Ray's GCS", lose_gcs),
        "controller": Fault("kill -9 of the controller", lose_controller),
        "node": Fault("kill -9 of a node's raylet", lose_node),
        "controllers": Fault("two controllers at once", two_controllers),
        "poison": Fault("a replica fails at everything", poison),
        "hang": Fault("a heavy replica hangs (SIGSTOP)", hang(replica(plans.HEAVY)), alone=True),
        "freeze": Fault("one hangs as roles flip", hang(replica(plans.HEAVY), flipped=True), alone=True),
        "balancer-hang": Fault("a load balancer hangs (SIGSTOP)", hang(any_of(BALANCER))),
        "redis-down": Fault("Redis down", redis_down),
        "redis-paused": Fault("Redis paused", redis_paused),
        "redis-flushed": Fault("Redis flushed", redis_flushed),
        "redis-full": Fault("Redis full", redis_full),
        "flips": Fault(f"roles flipped {flips} times", flip(flips), alone=True),
    }

"""What can be done to a service, one fault at a time, and how to see that it is whole again."""

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
from testing.testbed import HEAVY, LIGHT, PROMPTS, Testbed, plan
from weir import plan as plans

#: A fault that passes lasts so long; and between two flips.
LASTS_S, FLIP_S = 5.0, 5.0
#: Asks whether the service is whole again.
Whole = Callable[[], bool]
#: The process id of the victim.
Find = Callable[[Testbed, random.Random], int]
#: Calls the third argument and does the harm at once; takes it back where it passes, and returns when that is done.
Harm = Callable[[Testbed, random.Random, Callable[[], None]], Whole]


def replica(role: str) -> Find:
    """A replica of the role, where the plan has any."""
    return lambda bed, chance: chance.choice(bed.pids(role))


def only(deployment: str) -> Find:
    """The only replica of a deployment."""
    return lambda bed, _: min(bed.running(deployment).values())


def kill(find: Find) -> Harm:
    """SIGKILL for one process of the service."""

    def harm(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
        victim = find(bed, chance)
        strike()
        os.kill(victim, signal.SIGKILL)
        return lambda: bed.is_whole(without=[victim])

    return harm


def hang(find: Find, *, flipped: bool = False) -> Harm:
    """A process freezes and is still there; with ``flipped`` just before all replicas are told of a new plan."""

    def harm(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
        victim = find(bed, chance)
        strike()
        os.kill(victim, signal.SIGSTOP)
        if flipped:
            bed.publish(plan(bed.next_version(), LIGHT - 1, HEAVY + 1))
        return lambda: bed.is_whole(without=[victim])

    return harm


def poison(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """Whatever a replica is asked to draw fails from now on, at once, so that it looks idle and draws work: the one
    that gets the next image when nobody has work."""
    import ray

    process = bed.replicas(plans.LIGHT)[0]["process"]
    actor = ray.get_actor(process["actor"], namespace="serve")
    strike()
    ray.get(actor.__ray_call__.remote(_break))
    return lambda: bed.is_whole(without=[process["pid"]])


def _break(replica: Any) -> None:
    """Runs in the process of the replica."""

    def fail(samples: object) -> None:
        raise RuntimeError("the device is broken")

    replica._replica_impl._user_callable_wrapper.user_callable.engine.step = fail


def lose_controller(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """The controller is killed, and after a while somebody starts it again."""
    (controller,) = bed.controllers
    strike()
    bed.stop_controller(controller, signal.SIGKILL)
    time.sleep(LASTS_S)
    bed.start_controller()
    return bed.is_whole


def lose_node(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """The raylet of a node is killed and all that runs there dies with it; after a while another node comes."""
    node = chance.choice(bed.nodes())
    dead = [process.pid for process in node.children()]
    strike()
    node.kill()
    time.sleep(LASTS_S)
    bed.start_node()
    return lambda: bed.is_whole(without=dead)


def two_controllers(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    strike()
    second = bed.start_controller()
    time.sleep(2 * LASTS_S)
    bed.stop_controller(second)
    return bed.is_whole


def flip(times: int) -> Harm:
    """Light replicas become heavy and back, again and again."""

    def harm(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
        strike()
        for number in range(times):
            bed.publish(plan(bed.next_version(), *((3, 1) if number % 2 else (1, 3))))
            time.sleep(FLIP_S)
        bed.publish(plan(bed.next_version()))
        return bed.is_whole

    return harm


def hits(bed: Testbed) -> bool:
    """Whether a request goes on from a cached state again."""
    return any(bed.ask(PROMPTS[0], model="bed/heavy")["path"] == "cache" for _ in range(2))


def redis_down(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """Redis dies, and comes back empty."""
    assert bed.redis is not None
    password, _, address = bed.redis.url.removeprefix("redis://:").partition("@")
    strike()
    bed.redis.process.kill()
    bed.redis.stop()
    time.sleep(LASTS_S)
    port = int(address.partition("/")[0].rpartition(":")[2])
    bed.redis = RedisServer.start(port=port, password=password)
    return lambda: hits(bed)


def redis_paused(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """Redis takes connections and says nothing."""
    assert bed.redis is not None
    strike()
    os.kill(bed.redis.process.pid, signal.SIGSTOP)
    time.sleep(LASTS_S)
    os.kill(bed.redis.process.pid, signal.SIGCONT)
    return lambda: hits(bed)


def redis_flushed(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """All states are gone, and the index still knows them."""
    assert bed.redis is not None
    with redis.Redis.from_url(bed.redis.url) as client:
        strike()
        client.flushall()
    return lambda: hits(bed)


def redis_full(bed: Testbed, chance: random.Random, strike: Callable[[], None]) -> Whole:
    """Redis refuses every write."""
    assert bed.redis is not None
    with redis.Redis.from_url(bed.redis.url) as client:
        strike()
        client.config_set("maxmemory", 1)
        time.sleep(LASTS_S)
        client.config_set("maxmemory", 0)
    return lambda: hits(bed)


@dataclass(frozen=True, slots=True)
class Fault:
    """What the table says, the harm, and whether the live controller, which would plan against it, is stopped."""

    what: str
    harm: Harm
    alone: bool = False


def faults(flips: int) -> dict[str, Fault]:
    """All faults by name."""
    return {
        "light": Fault("kill -9 of a light replica", kill(replica(plans.LIGHT))),
        "heavy": Fault("kill -9 of a heavy replica", kill(replica(plans.HEAVY))),
        "cache": Fault("kill -9 of the cache", kill(only(CACHE))),
        "balancer": Fault("kill -9 of the load balancer", kill(only(BALANCER))),
        "proxy": Fault("kill -9 of Serve's proxy", kill(lambda bed, _: bed.process("ProxyActor"))),
        "serve": Fault("kill -9 of Serve's controller", kill(lambda bed, _: bed.process("ServeController"))),
        "controller": Fault("kill -9 of the controller", lose_controller),
        "node": Fault("kill -9 of a node's raylet", lose_node),
        "controllers": Fault("two controllers at once", two_controllers),
        "poison": Fault("a replica fails at everything", poison),
        "hang": Fault("a heavy replica hangs (SIGSTOP)", hang(replica(plans.HEAVY)), alone=True),
        "freeze": Fault("one hangs as roles flip", hang(replica(plans.HEAVY), flipped=True), alone=True),
        "balancer-hang": Fault("the load balancer hangs", hang(only(BALANCER))),
        "redis-down": Fault("Redis down", redis_down),
        "redis-paused": Fault("Redis paused", redis_paused),
        "redis-flushed": Fault("Redis flushed", redis_flushed),
        "redis-full": Fault("Redis full", redis_full),
        "flips": Fault(f"roles flipped {flips} times", flip(flips), alone=True),
    }

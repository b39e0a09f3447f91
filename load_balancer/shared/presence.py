"""Which load balancers of a service are there."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from load_balancer.shared.store import SharedStore

WHAT = "the list of load balancers"
#: Seconds between two signs of life.
BEAT_S = 0.5
#: Seconds without a sign of life after which a load balancer counts as lost.
LOST_S = 2.0

#: Seconds without a sign of life after which the process of a load balancer is killed, so that its clients are answered
#: by others. It is longer, because a busy machine may stop a process for a while.
DEAD_S = 4.0

_BEAT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local found = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  found[#found + 1] = all[i]
  found[#found + 1] = tostring(now - all[i + 1])
  found[#found + 1] = redis.call('HGET', KEYS[2], all[i]) or 'null'
end
return found
"""


class Others(NamedTuple):
    """The other load balancers.

    Attributes:
        alive, lost: names of those that are there, and of those that are not.
        dead: processes of those that are to be killed, by name, as :func:`weir.actor_process.own_process` describes
            them; None where that is unknown. They are lost, too.
    """

    alive: frozenset[str]
    lost: frozenset[str]
    dead: dict[str, dict[str, Any] | None]


class Presence:
    """The signs of life of all load balancers of a service, on the clock of Redis.

    Args:
        name: of this load balancer, never reused.
        process: its process, for those who have to end it.
    """

    def __init__(self, store: SharedStore, name: str, process: dict[str, Any] | None = None):
        self.name = name
        self._store = store
        self._process = json.dumps(process)

    async def beat(self) -> Others:
        """Gives a sign of life, and returns the others.

        Raises:
            NotReady: Redis does not answer.
        """
        keys = [self._store.key("balancers"), self._store.key("processes")]
        listed = await self._store.run(_BEAT, keys, [self.name, self._process], WHAT)
        ages: dict[str, float] = {}
        dead: dict[str, dict[str, Any] | None] = {}
        for name, age, process in zip(listed[::3], listed[1::3], listed[2::3], strict=True):
            if (other := name.decode()) != self.name:
                ages[other] = float(age)
                if ages[other] > DEAD_S:
                    dead[other] = json.loads(process)
        alive = frozenset(name for name, age_s in ages.items() if age_s <= LOST_S)
        return Others(alive, frozenset(ages) - alive, dead)

    async def forget(self, name: str) -> bool:
        """Removes a load balancer from the list. Returns whether this one has removed it, and not another one.

        Raises:
            NotReady: Redis does not answer.
        """
        async with self._store.redis(WHAT) as redis:
            await redis.hdel(self._store.key("processes"), name)  # type: ignore[misc]
            return bool(await redis.zrem(self._store.key("balancers"), name))

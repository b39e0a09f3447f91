"""Which load balancers of a service are there."""

from __future__ import annotations

from typing import NamedTuple

from load_balancer.shared.store import SharedStore

#: Seconds between two signs of life.
BEAT_S = 0.5
#: Seconds without a sign of life after which a load balancer counts as lost.
LOST_S = 2.0

_BEAT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
local found = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  found[#found + 1] = all[i]
  found[#found + 1] = tostring(now - all[i + 1])
end
return found
"""


class Others(NamedTuple):
    """The other load balancers, by name: those that are there, and those that are lost."""

    alive: frozenset[str]
    lost: frozenset[str]


class Presence:
    """The signs of life of all load balancers of a service, on the clock of Redis.

    Args:
        name: of this load balancer, never reused.
    """

    def __init__(self, store: SharedStore, name: str):
        self.name = name
        self._store = store

    async def beat(self) -> Others:
        """Gives a sign of life, and returns the others.

        Raises:
            NotReady: Redis does not answer.
        """
        listed = await self._store.run(_BEAT, [self._store.key("balancers")], [self.name], "the list of load balancers")
        ages = {name.decode(): float(age) for name, age in zip(listed[::2], listed[1::2], strict=True)}
        ages.pop(self.name)
        alive = frozenset(name for name, age_s in ages.items() if age_s <= LOST_S)
        return Others(alive, frozenset(ages) - alive)

    async def forget(self, name: str) -> None:
        """Removes a load balancer from the list, because everything it had was taken over, or because it leaves.

        Raises:
            NotReady: Redis does not answer.
        """
        async with self._store.redis("the list of load balancers") as redis:
            await redis.zrem(self._store.key("balancers"), name)

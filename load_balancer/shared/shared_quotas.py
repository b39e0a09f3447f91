"""Quotas that all load balancers of a service keep together, in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from load_balancer.admission.quotas import Quotas, at_most_a_minute, at_most_at_once, check_size
from load_balancer.http.api_keys import Caller
from load_balancer.shared.store import SharedStore
from weir.errors import NotReady

log = logging.getLogger(__name__)

#: Returns {1, ""} or {0, images in flight} or {-1, seconds to wait}.
_TAKE = """
local images, most, rate = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local in_flight = 0
for _, count in ipairs(redis.call('HVALS', KEYS[1])) do in_flight = in_flight + tonumber(count) end
if most > 0 and in_flight + images > most then return {0, tostring(in_flight)} end
if rate > 0 then
  local time = redis.call('TIME')
  local now = time[1] + time[2] / 1000000
  local kept = redis.call('HMGET', KEYS[2], 'tokens', 'filled_at')
  local full = math.max(1, rate)
  local tokens = full
  if kept[1] then tokens = math.min(full, kept[1] + rate / 60 * math.max(0, now - kept[2])) end
  local price = tonumber(ARGV[5])
  if tokens < price then return {-1, tostring((price - tokens) * 60 / rate)} end
  redis.call('HSET', KEYS[2], 'tokens', tostring(tokens - price), 'filled_at', tostring(now))
  redis.call('EXPIRE', KEYS[2], 120)
end
redis.call('HINCRBY', KEYS[1], ARGV[4], images)
redis.call('SADD', KEYS[3], KEYS[1])
return {1, ''}
"""
_FORGET = """
for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  redis.call('HDEL', key, ARGV[1])
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', KEYS[1], key) end
end
"""
WHAT = "the quota of this key"


class SharedQuotas:
    """The use of every caller over all load balancers. Callers without limits cost nothing.

    While Redis does not answer, this load balancer counts by itself.

    Args:
        owner: name of this load balancer.
        alone: what it counts by then.
    """

    def __init__(self, store: SharedStore, owner: str, alone: Quotas):
        self._store, self._owner, self._alone = store, owner, alone
        self._pending: set[asyncio.Task[None]] = set()

    async def charge(self, caller: Caller, images: int, price: float) -> Callable[[], None]:
        """See :meth:`load_balancer.admission.quotas.Quotas.charge`."""
        check_size(caller, images, price)
        rate, most = caller.images_per_minute, caller.concurrent_images
        if rate is None and most is None:
            return lambda: None
        keys = [self._in_flight(caller), self._store.key("quota", "rate", caller.name), self._callers]
        try:
            arguments = [images, most or 0, rate or 0, self._owner, price]
            done, detail = await self._store.run(_TAKE, keys, arguments, WHAT)
        except NotReady:
            return await self._alone.charge(caller, images, price)
        if done == 0:
            raise at_most_at_once(int(float(detail)), most or 0)
        if done == -1:
            raise at_most_a_minute(rate or 0, float(detail))
        return partial(self._give_back, caller, images)

    def _give_back(self, caller: Caller, images: int) -> None:
        task = asyncio.get_running_loop().create_task(self._subtract(caller, images))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def forget(self, lost: str) -> None:
        """Forgets what a lost load balancer had in flight.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._store.run(_FORGET, [self._callers], [lost], WHAT)

    async def _subtract(self, caller: Caller, images: int) -> None:
        try:
            async with self._store.redis(WHAT) as redis:
                await redis.hincrby(self._in_flight(caller), self._owner, -images)  # type: ignore[misc]
        except NotReady:
            log.warning("%s has %d images too many in its quota until Redis answers again", caller.name, images)

    def _in_flight(self, caller: Caller) -> str:
        return self._store.key("quota", "in-flight", caller.name)

    @property
    def _callers(self) -> str:
        return self._store.key("quota", "callers")

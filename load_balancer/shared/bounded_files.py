"""Files in Redis, bounded by the sum of their sizes, by their number and by their age; the oldest are removed first."""

from __future__ import annotations

from load_balancer.shared.store import SharedStore

_PUT = """
local now, most_bytes, most_files = tonumber(redis.call('TIME')[1]), tonumber(ARGV[4]), tonumber(ARGV[5])
local before = tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or '0')
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], #ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local total = redis.call('INCRBY', KEYS[4], #ARGV[2] - before)
while true do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if #oldest == 0 then break end
  local expired = tonumber(oldest[2]) < now - tonumber(ARGV[3])
  if not expired and total <= most_bytes and redis.call('ZCARD', KEYS[2]) <= most_files then break end
  total = redis.call('DECRBY', KEYS[4], tonumber(redis.call('HGET', KEYS[3], oldest[1]) or '0'))
  redis.call('HDEL', KEYS[3], oldest[1])
  redis.call('ZREM', KEYS[2], oldest[1])
  redis.call('DEL', ARGV[6] .. oldest[1])
end
return total
"""


class BoundedFiles:
    """Files by name.

    Args:
        kind: part of their keys, and what they are called in errors.
        kept_s: seconds for which a file is kept at most.
    """

    def __init__(self, store: SharedStore, kind: str, *, kept_s: float, most_bytes: int, most_files: int = 100_000):
        self._store = store
        self._kind = kind
        self._limits = (max(1, round(kept_s)), most_bytes, most_files)

    async def put(self, name: str, content: bytes) -> None:
        """Keeps a file, unless it is larger than the whole budget.

        Raises:
            NotReady: Redis does not answer.
        """
        if len(content) > self._limits[1]:
            return
        key, kind = self._store.key, self._kind
        keys = [key(kind, "file", name), key(kind, "order"), key(kind, "sizes"), key(kind, "bytes")]
        await self._store.run(_PUT, keys, [name, content, *self._limits, key(kind, "file", "")], f"{kind}s")

    async def get(self, name: str) -> bytes | None:
        """Reads a file; None if there is none.

        Raises:
            NotReady: Redis does not answer.
        """
        async with self._store.redis(f"{self._kind}s") as redis:
            content = await redis.get(self._store.key(self._kind, "file", name))
        return content if isinstance(content, bytes) else None

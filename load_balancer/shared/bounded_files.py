"""Files in Redis, bounded by the sum of their sizes, by their number and by their age, in shares by tenant."""

from __future__ import annotations

from load_balancer.shared.store import SharedStore

_PUT = """
local now, kept_s, most_bytes, most_files = tonumber(redis.call('TIME')[1]), ARGV[3], ARGV[4], ARGV[5]
local kind, owner = ARGV[6], ARGV[7]
local bytes, sizes = kind .. 'bytes', kind .. 'sizes'

local function drop_oldest(tenant)
  local order = kind .. 'order:' .. tenant
  local name = redis.call('ZRANGE', order, 0, 0)[1]
  if name then
    local size = redis.call('HGET', sizes, name) or '0'
    redis.call('ZREM', order, name)
    redis.call('HDEL', sizes, name)
    redis.call('DEL', kind .. 'file:' .. name)
    redis.call('HINCRBY', bytes, tenant, -size)
  end
  if redis.call('ZCARD', order) == 0 then redis.call('HDEL', bytes, tenant) end
end

redis.call('SET', kind .. 'file:' .. ARGV[1], ARGV[2], 'EX', kept_s)
local before = redis.call('HGET', sizes, ARGV[1]) or '0'
redis.call('HSET', sizes, ARGV[1], #ARGV[2])
redis.call('ZADD', kind .. 'order:' .. owner, now, ARGV[1])
redis.call('HINCRBY', bytes, owner, #ARGV[2] - before)
for _, tenant in ipairs(redis.call('HKEYS', bytes)) do
  while redis.call('ZCOUNT', kind .. 'order:' .. tenant, '-inf', now - kept_s) > 0 do drop_oldest(tenant) end
end
while true do
  local total, most, largest = 0, -1, nil
  local all = redis.call('HGETALL', bytes)
  for i = 1, #all, 2 do
    total = total + all[i + 1]
    if tonumber(all[i + 1]) > most then most, largest = tonumber(all[i + 1]), all[i] end
  end
  if not largest then break end
  if total <= tonumber(most_bytes) and redis.call('HLEN', sizes) <= tonumber(most_files) then break end
  drop_oldest(largest)
end
return 1
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

    async def put(self, tenant: str, name: str, content: bytes) -> None:
        """Keeps a file, unless it is larger than the whole budget. When there is no room, the tenant whose files take
        most of it loses its oldest.

        Raises:
            NotReady: Redis does not answer.
        """
        if len(content) > self._limits[1]:
            return
        kind = self._store.key(self._kind, "")
        await self._store.run(_PUT, [], [name, content, *self._limits, kind, tenant], f"{self._kind}s")

    async def get(self, name: str) -> bytes | None:
        """Reads a file; None if there is none.

        Raises:
            NotReady: Redis does not answer.
        """
        async with self._store.redis(f"{self._kind}s") as redis:
            content = await redis.get(self._store.key(self._kind, "file", name))
        return content if isinstance(content, bytes) else None

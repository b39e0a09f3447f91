"""The jobs of all load balancers in Redis: what was requested, who runs it, and how it ended.

A record exists from before the job begins until its answer expires. The load balancer that runs a job is its owner.
When an owner is lost, one of the others takes each of its jobs over and runs it again, with the same id and seed.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from load_balancer.http.api_keys import Caller
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.shared.bounded_files import BoundedFiles
from load_balancer.shared.store import SharedStore
from weir.adapters import AdapterUse
from weir.core import Edit, ImageSize

WHAT = "a job"
#: Seconds after which the record of a job is removed that has not ended.
MOST_RUNNING_S = 24 * 3600.0

_TAKE_OVER = """
if redis.call('SMOVE', KEYS[1], KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('SET', KEYS[3], ARGV[2], 'KEEPTTL')
return 1
"""
_FREE_KEY = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What Redis has of a job.

    Attributes:
        id: of the request that began it.
        number: names the job, never reused; ids come from clients.
        key: the caller's idempotency key, or None.
        base_url: URL by which the client calls the service.
        created, ended: unix time, seconds; ``ended`` is None while it runs.
        owner: name of the load balancer that runs it.
        error: the error that ended it, as :meth:`weir.errors.WeirError.to_dict` writes it; None without one.
        digest: of the request with the pictures of its edit (hexadecimal), once they are removed; None before.
    """

    number: str
    request: GenerationRequest
    key: str | None
    base_url: str
    created: float
    owner: str
    ended: float | None = None
    error: dict[str, Any] | None = None
    digest: str | None = None

    @property
    def id(self) -> str:
        return self.request.id

    def is_of(self, request: GenerationRequest) -> bool:
        """Whether it is the job of an equal request."""
        return (self.digest or self.request.digest.hex()) == request.digest.hex()

    def without_pictures(self) -> JobRecord:
        """The record without the pictures of an edit. They are not needed after its end."""
        edit = self.request.edit
        if edit is None or self.digest is not None:
            return self
        small = Edit(b"", None if edit.mask is None else b"", edit.strength)
        return replace(self, request=replace(self.request, edit=small), digest=self.request.digest.hex())

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"), default=_to_text)

    @classmethod
    def from_json(cls, text: bytes | str) -> JobRecord:
        fields = json.loads(text)
        request = fields["request"]
        converted: dict[str, Any] = {
            "caller": Caller(**request["caller"]),
            "size": ImageSize(*request["size"]),
            "adapters": tuple(map(AdapterUse.from_dict, request.get("adapters", ()))),
        }
        if (edit := request["edit"]) is not None:
            image, mask = (None if edit[it] is None else base64.b64decode(edit[it]) for it in ("image", "mask"))
            converted["edit"] = Edit(image or b"", mask, edit["strength"])
        return cls(**{**fields, "request": GenerationRequest(**{**request, **converted})})


class JobLedger:
    """The records, seen by one load balancer.

    Args:
        owner: name of this load balancer.
        kept_s: seconds for which the answer of an ended job is kept.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        store: SharedStore,
        owner: str,
        *,
        kept_s: float,
        most_bytes: int,
        clock: Callable[[], float] = time.time,
    ):
        self.owner = owner
        self._store, self._kept_s, self._clock = store, kept_s, clock
        self._answers = BoundedFiles(store, "answer", kept_s=kept_s, most_bytes=most_bytes)

    async def claim(self, record: JobRecord) -> JobRecord | None:
        """Enters a job, before it begins. Returns the record of the job that has its key already, if there is one; then
        nothing was entered.

        Raises:
            NotReady: Redis does not answer; the job must not begin.
        """
        async with self._store.redis(WHAT) as redis:
            await redis.set(self._job(record.number), record.to_json(), ex=round(MOST_RUNNING_S))
            if record.key is not None:
                for _ in range(2):
                    key = self._key_of(record)
                    if await redis.set(key, record.number, nx=True, ex=round(MOST_RUNNING_S)):
                        break
                    known = await self.read(_text(await redis.get(key)))
                    if known is not None:
                        await redis.delete(self._job(record.number))
                        return known
                    await redis.delete(key)  # of a job that has expired
            await redis.sadd(self._running(self.owner), record.number)  # type: ignore[misc]
        await self.name(record, record.id)
        return None

    async def name(self, record: JobRecord, id: str) -> None:
        """Gives a job one more id, by which its caller finds it."""
        async with self._store.redis(WHAT) as redis, redis.pipeline() as pipe:
            pipe.hset(self._named(id), record.request.caller.name, record.number)
            pipe.expire(self._named(id), round(MOST_RUNNING_S if record.ended is None else self._kept_s))
            await pipe.execute()

    async def end(self, record: JobRecord, body: bytes | None, error: dict[str, Any] | None) -> None:
        """Enters the end of a job. Without an answer its key is free again.

        Raises:
            NotReady: Redis does not answer; another load balancer may run the job again when this one is lost.
        """
        ended = replace(record.without_pictures(), owner=self.owner, ended=self._clock(), error=error)
        if body is not None:
            await self._answers.put(record.request.caller.tenant, record.number, body)
        elif record.key is not None:
            await self._store.run(_FREE_KEY, [self._key_of(record)], [record.number], WHAT)
        kept_s = max(1, round(self._kept_s))
        async with self._store.redis(WHAT) as redis, redis.pipeline() as pipe:
            pipe.set(self._job(record.number), ended.to_json(), ex=kept_s)
            pipe.expire(self._named(record.id), kept_s)
            if record.key is not None and body is not None:
                pipe.expire(self._key_of(record), kept_s)
            pipe.srem(self._running(self.owner), record.number)
            await pipe.execute()

    async def forget(self, record: JobRecord) -> None:
        """Removes a job that has ended.

        Raises:
            NotReady: Redis does not answer.
        """
        if record.key is not None:
            await self._store.run(_FREE_KEY, [self._key_of(record)], [record.number], WHAT)
        async with self._store.redis(WHAT) as redis:
            await redis.hdel(self._named(record.id), record.request.caller.name)  # type: ignore[misc]
            await redis.delete(self._job(record.number))

    async def read(self, number: str) -> JobRecord | None:
        """The record with a number; None when it has expired.

        Raises:
            NotReady: Redis does not answer.
        """
        async with self._store.redis(WHAT) as redis:
            text = await redis.get(self._job(number))
        return None if text is None else JobRecord.from_json(text)

    async def answer(self, record: JobRecord) -> bytes | None:
        """The body of the answer of an ended job; None when newer answers replaced it."""
        return await self._answers.get(record.number)

    async def find(self, id: str, caller: Caller) -> JobRecord | None:
        """The caller's job with an id; for an administrator, anyone's.

        Raises:
            NotReady: Redis does not answer.
        """
        async with self._store.redis(WHAT) as redis:
            number = await redis.hget(self._named(id), caller.name)  # type: ignore[misc]
            if number is None and caller.admin:
                number = next(iter(await redis.hvals(self._named(id))), None)  # type: ignore[misc]
        return None if number is None else await self.read(_text(number))

    async def take_over(self, lost: str) -> list[JobRecord]:
        """Becomes the owner of jobs of a load balancer that is lost; others may get a part of them.

        Raises:
            NotReady: Redis does not answer.
        """
        mine = []
        async with self._store.redis(WHAT) as redis:
            numbers = [_text(it) for it in await redis.smembers(self._running(lost))]  # type: ignore[misc]
        for number in numbers:
            record = await self.read(number)
            if record is None:
                async with self._store.redis(WHAT) as redis:
                    await redis.srem(self._running(lost), number)  # type: ignore[misc]
            elif await self._move(record, lost):
                mine.append(replace(record, owner=self.owner))
        return mine

    async def _move(self, record: JobRecord, lost: str) -> bool:
        keys = [self._running(lost), self._running(self.owner), self._job(record.number)]
        moved = replace(record, owner=self.owner).to_json()
        return bool(await self._store.run(_TAKE_OVER, keys, [record.number, moved], WHAT))

    def _job(self, number: str) -> str:
        return self._store.key("job", number)

    def _running(self, owner: str) -> str:
        return self._store.key("running", owner)

    def _named(self, id: str) -> str:
        return self._store.key("id", id)

    def _key_of(self, record: JobRecord) -> str:
        return self._store.key("key", record.request.caller.name, record.key or "")


def _to_text(picture: bytes) -> str:
    """A picture of an edit in JSON."""
    return base64.b64encode(picture).decode()


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


class Sharing(NamedTuple):
    """How several load balancers share their jobs.

    Attributes:
        ledger: the records of all jobs that outlive their connection.
        ask_to_cancel: asks the load balancer that runs the job with a number to cancel it.
    """

    ledger: JobLedger
    ask_to_cancel: Callable[[str], Awaitable[None]]

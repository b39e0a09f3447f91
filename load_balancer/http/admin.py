"""The routes below ``/v1/admin``: the operator's controls. They need the scope admin, before a body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any

from fastapi import APIRouter, Request, Response

from load_balancer.http import admin_schema as schema
from load_balancer.http.api_keys import Caller
from load_balancer.http.body import json_body
from load_balancer.http.responses import reply, typed_errors
from load_balancer.runner.balancer import Balancer
from load_balancer.shared.shared_state import SharedState
from weir.config import LimitsConfig
from weir.errors import Forbidden

ADMIN = "/v1/admin"


def admin(
    balancer: Balancer, variants: Iterable[str], limits: LimitsConfig, shared: SharedState | None = None
) -> APIRouter:
    """Creates the routes of one balancer.

    Args:
        variants: those that the replicas hold.
        limits: of the size of a body, and of the time that it may take.
        shared: what it shares with other load balancers; None where there are none.
    """
    router, controls = APIRouter(prefix=ADMIN), balancer.controls
    changing = nullcontext if shared is None else partial(shared.changing, controls)

    def state() -> Response:
        return reply(balancer.admin_state())

    async def body_of(request: Request, kind: type[schema.Body]) -> schema.Body:
        return schema.parsed(kind, await json_body(request, limits.body_bytes, limits.body_s))

    @router.get("/plan", **schema.SHOW)
    @_for_administrators
    async def show(request: Request) -> Response:
        return state()

    @router.put("/pin", **schema.set_pin(variants))
    @_for_administrators
    async def pin(request: Request) -> Response:
        body = await body_of(request, schema.PinBody)
        async with changing():
            controls.set_pin(_who(request), body.values, body.for_s, body.reason)
        return state()

    @router.delete("/pin", **schema.UNPIN)
    @_for_administrators
    async def unpin(request: Request) -> Response:
        async with changing():
            controls.unpin(_who(request))
        return state()

    @router.put("/policy", **schema.SWITCH)
    @_for_administrators
    async def policy(request: Request) -> Response:
        body = await body_of(request, schema.PolicyBody)
        async with changing():
            await controls.switch_policy(_who(request), body.policy)
        return state()

    @router.put("/replicas", **schema.SCALE)
    @_for_administrators
    async def scale(request: Request) -> Response:
        body = await body_of(request, schema.ScaleBody)
        async with changing():
            controls.scale(_who(request), body.replicas)
        return state()

    @router.put("/replicas/{id}/drain", **schema.DRAIN)
    @_for_administrators
    async def drain(request: Request, id: str) -> Response:
        body = await body_of(request, schema.DrainBody)
        async with changing():
            controls.drain(_who(request), id, force=body.force)
        return state()

    @router.delete("/replicas/{id}/drain", **schema.RETURN)
    @_for_administrators
    async def restore(request: Request, id: str) -> Response:
        async with changing():
            controls.restore(_who(request), id)
        return state()

    @router.post("/adapters", **schema.ADD)
    @_for_administrators
    async def add_adapter(request: Request) -> Response:
        body = await body_of(request, schema.AdapterBody)
        async with changing():
            await controls.add_adapter(_who(request), body.name, body.weights)
        return state()

    @router.delete("/adapters/{id}", **schema.REMOVE)
    @_for_administrators
    async def remove_adapter(request: Request, id: str) -> Response:
        async with changing():
            controls.remove_adapter(_who(request), id)
        return state()

    @router.get("/cache", **schema.CACHE)
    @_for_administrators
    async def cache(request: Request) -> Response:
        return reply(await controls.cache_statistics())

    @router.post("/cache/purge", **schema.PURGE)
    @_for_administrators
    async def purge(request: Request) -> Response:
        body = await body_of(request, schema.PurgeBody)
        async with changing():
            return reply(await controls.purge(_who(request), body.tenant))

    return router


def _for_administrators(handler: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Refuses callers without the scope admin; errors are answered as everywhere."""

    @typed_errors
    @wraps(handler)
    async def guarded(request: Request, **fields: Any) -> Response:
        if not _caller(request).admin:
            raise Forbidden(
                "this key lacks the scope admin; `weir keys new --admin` creates one with it. A service without keys "
                "allows it only where it listens on this machine alone"
            )
        return await handler(request, **fields)

    return guarded


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _who(request: Request) -> str:
    return _caller(request).name

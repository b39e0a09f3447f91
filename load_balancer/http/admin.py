"""The routes below ``/v1/admin``: the operator's controls. They need the scope admin, before a body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import wraps
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
    router, operations = APIRouter(prefix=ADMIN), _Operations(balancer, limits, shared)
    _plan_routes(router, operations, variants)
    _replica_routes(router, operations)
    _adapter_routes(router, operations)
    _cache_routes(router, operations)
    return router


class _Operations:
    """What the routes of one balancer have in common."""

    def __init__(self, balancer: Balancer, limits: LimitsConfig, shared: SharedState | None):
        self.controls = balancer.controls
        self._balancer, self._limits, self._shared = balancer, limits, shared

    def state(self) -> Response:
        """The answer that says how everything is now."""
        return reply(self._balancer.admin_state())

    def changing(self) -> AbstractAsyncContextManager[None]:
        """Context manager around a change of the controls, which the other load balancers follow."""
        return nullcontext() if self._shared is None else self._shared.changing(self.controls)

    async def read(self, request: Request, kind: type[schema.Body]) -> schema.Body:
        """Reads the body of a request; see :func:`load_balancer.http.admin_schema.parsed`."""
        return schema.parsed(kind, await json_body(request, self._limits.body_bytes, self._limits.body_s))


def _plan_routes(router: APIRouter, operations: _Operations, variants: Iterable[str]) -> None:
    @router.get("/plan", **schema.SHOW)
    @_for_administrators
    async def show(request: Request) -> Response:
        return operations.state()

    @router.put("/pin", **schema.set_pin(variants))
    @_for_administrators
    async def pin(request: Request) -> Response:
        body = await operations.read(request, schema.PinBody)
        async with operations.changing():
            operations.controls.pins.set(_who(request), body.values, body.for_s, body.reason)
        return operations.state()

    @router.delete("/pin", **schema.UNPIN)
    @_for_administrators
    async def unpin(request: Request) -> Response:
        async with operations.changing():
            operations.controls.pins.end(_who(request))
        return operations.state()

    @router.put("/policy", **schema.SWITCH)
    @_for_administrators
    async def policy(request: Request) -> Response:
        body = await operations.read(request, schema.PolicyBody)
        async with operations.changing():
            await operations.controls.switch_policy(_who(request), body.policy)
        return operations.state()


def _replica_routes(router: APIRouter, operations: _Operations) -> None:
    @router.put("/replicas", **schema.SCALE)
    @_for_administrators
    async def scale(request: Request) -> Response:
        body = await operations.read(request, schema.ScaleBody)
        async with operations.changing():
            operations.controls.scale(_who(request), body.replicas)
        return operations.state()

    @router.put("/replicas/{id}/drain", **schema.DRAIN)
    @_for_administrators
    async def drain(request: Request, id: str) -> Response:
        body = await operations.read(request, schema.DrainBody)
        async with operations.changing():
            operations.controls.drain(_who(request), id, force=body.force)
        return operations.state()

    @router.delete("/replicas/{id}/drain", **schema.RETURN)
    @_for_administrators
    async def restore(request: Request, id: str) -> Response:
        async with operations.changing():
            operations.controls.restore(_who(request), id)
        return operations.state()


def _adapter_routes(router: APIRouter, operations: _Operations) -> None:
    @router.post("/adapters", **schema.ADD)
    @_for_administrators
    async def add_adapter(request: Request) -> Response:
        body = await operations.read(request, schema.AdapterBody)
        async with operations.changing():
            await operations.controls.add_adapter(_who(request), body.name, body.weights)
        return operations.state()

    @router.delete("/adapters/{id}", **schema.REMOVE)
    @_for_administrators
    async def remove_adapter(request: Request, id: str) -> Response:
        async with operations.changing():
            operations.controls.remove_adapter(_who(request), id)
        return operations.state()


def _cache_routes(router: APIRouter, operations: _Operations) -> None:
    @router.get("/cache", **schema.CACHE)
    @_for_administrators
    async def cache(request: Request) -> Response:
        return reply(await operations.controls.cache_statistics())

    @router.post("/cache/purge", **schema.PURGE)
    @_for_administrators
    async def purge(request: Request) -> Response:
        body = await operations.read(request, schema.PurgeBody)
        async with operations.changing():
            return reply(await operations.controls.purge(_who(request), body.tenant))


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

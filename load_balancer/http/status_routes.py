"""The routes that say how a load balancer is: its web page, its state, and whether it lives and is ready."""

from __future__ import annotations

from fastapi import APIRouter, Response

from load_balancer.http.openapi import HEALTH, LIVE, READY
from load_balancer.http.page import Page
from load_balancer.http.responses import reply
from load_balancer.runner.balancer import Balancer


def status_routes(balancer: Balancer) -> APIRouter:
    """Creates the routes of one balancer. Only ``/v1/live`` needs a key, where keys are configured."""
    router, page = APIRouter(), Page()

    @router.get("/v1/live", **LIVE)
    async def live() -> Response:
        return reply(balancer.live())

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return page.response()

    @router.get("/healthz", **HEALTH)
    async def healthz() -> Response:
        return reply({"status": "ok"})

    @router.get("/readyz", **READY)
    async def readyz() -> Response:
        state = balancer.readiness()
        return reply(state, 200 if state["ready"] else 503)

    return router

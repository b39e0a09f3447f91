"""The HTTP face: OpenAI's images API, the page, the models, health. Thin: it reads, calls the balancer, and writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match, Route

from load_balancer.http.api_keys import ApiKeys
from load_balancer.http.auth import Gate
from load_balancer.http.generations import generations
from load_balancer.http.head import HeadAsGet
from load_balancer.http.image_store import ImageStore
from load_balancer.http.openapi import (
    FETCH,
    FILES,
    GENERATIONS,
    HEALTH,
    LIST_MODELS,
    LIVE,
    ONE_MODEL,
    READY,
    describe,
)
from load_balancer.http.page import Page
from load_balancer.http.responses import EXPOSED, failure, reply, typed_errors
from load_balancer.http.schema import RequestRules
from load_balancer.runner.balancer import Balancer
from weir import __version__
from weir.config import FamilyConfig, LimitsConfig
from weir.errors import InvalidRequest, NotFound


def create_app(
    balancer: Balancer,
    family: FamilyConfig,
    limits: LimitsConfig,
    callers: ApiKeys | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    allowed_origins: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application of one load balancer; without ``callers`` it is open to everybody.

    Args:
        aliases: further names of models → the models they stand for.
        allowed_origins: web pages of these origins may call; ``*`` lets all.
    """
    app = FastAPI(title="Weir", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, callers=callers or ApiKeys(), refuse=failure)
    app.add_middleware(HeadAsGet)
    if allowed_origins:  # outermost: a browser asks first without a key, and reads refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
    rules = RequestRules(family, limits, aliases)
    files, page = ImageStore(), Page()
    started = int(time.time())
    drawing = generations(balancer, rules, files, limits)
    app.include_router(drawing)

    def described(name: str) -> dict[str, object]:
        root = (aliases or {}).get(name, name)
        return {"id": name, "object": "model", "created": started, "owned_by": "weir", "root": root}

    @app.get("/v1/models", **LIST_MODELS)
    async def models() -> Response:
        return reply({"object": "list", "data": [described(name) for name in rules.models]})

    @app.get("/v1/models/{id:path}", **ONE_MODEL)
    @typed_errors
    async def model(id: str) -> Response:
        if not id:  # some clients ask for the list with a slash behind it
            return await models()
        return reply(described(rules.known_model(id)))

    @app.get(FILES + "/{name}", **FETCH)
    async def file(name: str) -> Response:
        content = files.get(name)
        if content is None:
            return failure(NotFound("there is no such file, or newer ones pushed it out", param="name"))
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}")

    @app.get("/v1/live", **LIVE)
    async def live() -> Response:
        return reply(balancer.live())

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page.response()

    @app.get("/healthz", **HEALTH)
    async def healthz() -> Response:
        return reply({"status": "ok"})

    @app.get("/readyz", **READY)
    async def readyz() -> Response:
        state = balancer.readiness()
        return reply(state, 200 if state["ready"] else 503)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:64]
        if error.status_code == 405:
            allowed = ", ".join(_methods([*app.routes, *drawing.routes], request))
            problem = InvalidRequest(f"{path} takes {allowed}, not {request.method[:16]}")
            return failure(problem, 405, {"Allow": allowed})
        problem = InvalidRequest(f"there is no {path}; images are drawn by POST {GENERATIONS}")
        return failure(problem, error.status_code, error.headers)

    describe(app, __version__)
    return app


def _methods(routes: list[BaseRoute], request: Request) -> list[str]:
    """What a path can be asked for; a framework that looks at one route at a time tells those of the first alone."""
    found = {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)

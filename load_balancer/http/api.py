"""The HTTP application: OpenAI's images API, the web page, models and health. It only translates to the balancer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match, Route

from load_balancer.admission.prompt_filter import FilteredPrompts
from load_balancer.http.admin import admin
from load_balancer.http.api_keys import ApiKeys
from load_balancer.http.auth import Authentication
from load_balancer.http.generations import generations
from load_balancer.http.head import HeadAsGet
from load_balancer.http.image_store import ImageStore, LocalImages
from load_balancer.http.model_list import ModelList
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
from load_balancer.http.request_id import RequestIds
from load_balancer.http.request_spans import RequestSpans
from load_balancer.http.responses import EXPOSED, failure, reply, typed_errors
from load_balancer.http.schema import RequestRules
from load_balancer.runner.balancer import Balancer
from load_balancer.shared.shared_state import SharedState
from weir import __version__
from weir.config import FamilyConfig, LimitsConfig
from weir.errors import InvalidRequest, NotFound
from weir.prompts import PromptSyntax


def create_app(
    balancer: Balancer,
    family: FamilyConfig,
    limits: LimitsConfig,
    callers: ApiKeys | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    prompt_syntax: PromptSyntax = "plain",
    prompt_filter: str | None = None,
    allowed_origins: Sequence[str] = (),
    behind_serve: bool = False,
    shared: SharedState | None = None,
) -> FastAPI:
    """Creates the ASGI application of one load balancer; without ``callers`` it needs no key.

    Args:
        aliases: additional model names → the models they stand for.
        prompt_syntax: of requests that name none.
        prompt_filter: ``module:name`` of the operator's filter of prompts.
        allowed_origins: origins whose web pages may call the API; ``*`` allows all.
        behind_serve: whether Ray Serve's proxy forwards the requests, and adds their ids to the responses.
        shared: what the load balancer shares with others; None where it is the only one.
    """
    app = FastAPI(title="Weir", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.add_middleware(Authentication, callers=callers or ApiKeys(), refuse=failure)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestSpans)
    app.add_middleware(RequestIds, refuse=failure, answered=not behind_serve)
    if allowed_origins:  # outermost: preflight requests have no key, and pages have to read refusals
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
    rules = RequestRules(family, limits, aliases, prompt_syntax, balancer.adapters)
    store: ImageStore = LocalImages() if shared is None else shared.images
    page = Page()
    listed = rules.sizes, rules.models, aliases or {}, balancer.adapters
    model_list = ModelList(family, *listed, balancer.cache_mode, int(time.time()))
    routers = (
        generations(balancer, rules, FilteredPrompts(prompt_filter), store, limits, shared),
        admin(balancer, family.keys, limits, shared),
    )
    for router in routers:
        app.include_router(router)

    @app.get("/v1/models", **LIST_MODELS)
    async def models() -> Response:
        return reply(model_list.all())

    @app.get("/v1/models/{id:path}", **ONE_MODEL)
    @typed_errors
    async def model(id: str) -> Response:
        if not id:  # some clients request the list with a trailing slash
            return await models()
        return reply(model_list.one(rules.known_model(id)))

    @app.get(FILES + "/{name}", **FETCH)
    @typed_errors
    async def file(name: str) -> Response:
        content = await store.get(name)
        if content is None:
            return failure(NotFound("there is no such file, or its time is over", param="name"))
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
            allowed = ", ".join(
                _methods([*app.routes, *(route for router in routers for route in router.routes)], request)
            )
            problem = InvalidRequest(f"{path} takes {allowed}, not {request.method[:16]}")
            return failure(problem, 405, {"Allow": allowed})
        problem = InvalidRequest(f"there is no {path}; images are generated by POST {GENERATIONS}")
        return failure(problem, error.status_code, error.headers)

    describe(app, __version__, rules.loras)
    return app


def _methods(routes: list[BaseRoute], request: Request) -> list[str]:
    """All methods of a path. Starlette reports those of the first matching route only."""
    found = {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)

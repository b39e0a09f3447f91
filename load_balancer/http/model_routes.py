"""The routes that list the models, ``/v1/models``."""

from __future__ import annotations

from fastapi import APIRouter, Response

from load_balancer.http.model_list import ModelList
from load_balancer.http.openapi import LIST_MODELS, ONE_MODEL
from load_balancer.http.responses import reply, typed_errors
from load_balancer.http.schema import RequestRules


def model_routes(model_list: ModelList, rules: RequestRules) -> APIRouter:
    """Creates the routes. ``rules`` refuses the names of models that do not exist."""
    router = APIRouter()

    @router.get("/v1/models", **LIST_MODELS)
    async def models() -> Response:
        return reply(model_list.all())

    @router.get("/v1/models/{id:path}", **ONE_MODEL)
    @typed_errors
    async def model(id: str) -> Response:
        if not id:  # some clients request the list with a trailing slash
            return await models()
        return reply(model_list.one(rules.known_model(id)))

    return router

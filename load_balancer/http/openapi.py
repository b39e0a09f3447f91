"""The API as it describes itself: the bodies of answers, which errors a route has, and its OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from load_balancer.runner.generation_request import ImageFormat
from weir.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    KeyReused,
    NotFound,
    NotReady,
    Overloaded,
    RateLimited,
    Unauthorized,
    UnknownModel,
    WeirError,
)

GENERATIONS = "/v1/images/generations"
FILES = "/v1/images/files"

DESCRIPTION = """Text-to-image behind one endpoint that OpenAI's clients know. A light model generates first, a
heavier one generates again what a discriminator doubts, and an approximate cache lets runs begin in the middle."""


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(_Described):
    message: str = Field(description="names the field, what is wrong with it, and what is accepted")
    type: str = Field(description="the kind of error, as OpenAI calls it")
    param: str | None = Field(description="the field or header that is wrong")
    code: str = Field(description="stable and machine-readable")


class ErrorBody(_Described):
    """Every failure, whatever its status."""

    error: Error


class CacheUse(_Described):
    """What the approximate cache gave."""

    similarity: float = Field(description="cosine to the nearest cached prompt")
    k: int = Field(description="the denoising step that the run began at; 0 from noise")
    id: str | None = Field(description="of the cached entry")


class About(_Described):
    """How an image came about."""

    id: str
    path: str = Field(
        description="key of the variant that generated it, such as light or heavy; with -deadline if its successor "
        "would have been late; cache: the last variant, from a stored state of a similar prompt"
    )
    model: str = Field(description="name of the variant that generated it")
    confidence: float | None = Field(
        description="the discriminator's confidence, 0…1, in the last image before that of the last variant"
    )
    heavy_confidence: float | None = Field(
        description="the same in the last variant's image, where the service generates doubtful ones again"
    )
    draws: int = Field(description="images of the last variant; the answer is the best of them")
    seed: int = Field(description="of the image that is the answer")
    steps: int = Field(description="denoising steps that ran for it")
    queue_s: float = Field(description="seconds in workers' queues")
    compute_s: float = Field(description="seconds at work")
    latency_s: float = Field(description="seconds from admission to the finished image")
    plan_version: int
    made_with: dict[str, str] = Field(description="software by version, and weights as repository@revision")
    cache: CacheUse | None
    emulated: bool = Field(description="no model ran: its latency was slept, and the picture is a placeholder")


class Image(_Described):
    b64_json: str | None = Field(None, description="the picture, in base64")
    url: str | None = Field(None, description="where the picture lies until newer ones push it out")
    weir: About


class Images(_Described):
    """OpenAI's images response; ``weir`` is beside each picture."""

    created: int = Field(description="unix time, seconds")
    data: list[Image]
    output_format: ImageFormat
    size: str = Field(description="of the images as they are")
    requested_size: str | None = Field(
        None,
        description="one of OpenAI's sizes that this family does not have; the images have the nearest that it has",
    )
    quality: str
    background: str


class Generation(_Described):
    """Where a request stands."""

    id: str
    object: Literal["image.generation"]
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: int = Field(description="unix time, seconds")
    queue_position: int | None = Field(description="1 for the first of those that wait at its replica")
    estimated_s: float | None = Field(description="seconds until the variant at work should be through")
    expires_at: int | None = Field(description="unix time, seconds; when an ended request is forgotten")
    error: Error | None
    result: Images | None = Field(description="the answer, as the request itself gets it")


class Model(_Described):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="the model that an alias stands for; else the model itself")


class Models(_Described):
    object: Literal["list"]
    data: list[Model]


class Alive(_Described):
    status: Literal["ok"]


class RoleReplicas(_Described):
    planned: int
    ready: int


class PlanInForce(_Described):
    version: int
    age_s: float
    threshold: float


class Readiness(_Described):
    ready: bool
    pending: list[str] = Field(description="what is still missing")
    replicas: dict[str, RoleReplicas] = Field(description="by role")
    plan: PlanInForce
    in_flight: int = Field(description="images admitted and not answered")


class Live(_Described):
    time: float = Field(description="unix time, seconds")
    ready: bool
    pending: list[str] = Field(description="what is still missing")
    roles: dict[str, RoleReplicas]
    plan_version: int
    threshold: float = Field(
        description="an image of the first variant with a lower confidence is deferred to the next one"
    )
    thresholds: list[float] = Field(description="the same for every judge in use, from the first on")
    reason: str = Field(description="why the controller made this plan; empty for the configured one")
    in_flight: int = Field(description="images admitted and not answered")
    queued: dict[str, int] = Field(description="images that wait at the replicas of a role")
    arrivals: int = Field(description="images asked for since the start, as all counts here")
    judged: int = Field(description="images of the first variant that the cascade decided about")
    deferred: int = Field(description="of these those that were deferred")
    cache: bool = Field(description="whether there is an approximate cache")
    looked_up: int = Field(description="images that the cache was asked for")
    hits: int = Field(description="of these those that were resumed from a stored state")


def errors(*kinds: type[WeirError]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route for these failures."""
    described: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        codes = [described[kind.status]["description"]] if kind.status in described else []
        described[kind.status] = {"model": ErrorBody, "description": ", ".join([*codes, f"`{kind.code}`"])}
    return described


_EVENTS = """With `stream`: server-sent events `image_generation.partial_image` and `image_generation.completed` with
OpenAI's fields, and `weir` beside them; a failure on the way is an event `error`, the last one."""
_GONE = """The request is taken out of work before the next denoising step of its worker; others go on. One that has
ended is forgotten."""

GENERATE: dict[str, Any] = {
    "summary": "Generate images",
    "tags": ["images"],
    "responses": {
        200: {
            "model": Images,
            "description": f"The images. {_EVENTS}",
            "content": {"text/event-stream": {}},
        },
        202: {
            "model": Generation,
            "description": "Asked for with `Prefer: respond-async`; ask at `Location` for it",
            "links": {
                name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in ("status", "cancel")
            },
        },
        **errors(
            InvalidRequest,
            Unauthorized,
            UnknownModel,
            BodyTooSlow,
            Cancelled,
            BodyTooLarge,
            KeyReused,
            RateLimited,
            Overloaded,
            GenerationFailed,
            WeirError,
            NotReady,
            DeadlineExceeded,
        ),
    },
}
STATUS: dict[str, Any] = {
    "summary": "Ask how a request stands",
    "operation_id": "status",
    "tags": ["images"],
    "responses": {200: {"model": Generation, "description": "Where it stands"}, **errors(Unauthorized, NotFound)},
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel a request",
    "operation_id": "cancel",
    "tags": ["images"],
    "responses": {200: {"model": Generation, "description": _GONE}, **errors(Unauthorized, NotFound)},
}
LIST_MODELS: dict[str, Any] = {
    "summary": "List the models: the cascade, and each variant on its own",
    "tags": ["models"],
    "responses": {200: {"model": Models, "description": "The models"}, **errors(Unauthorized)},
}
ONE_MODEL: dict[str, Any] = {
    "summary": "Look one model up, by its name or an alias",
    "tags": ["models"],
    "responses": {200: {"model": Model, "description": "The model"}, **errors(Unauthorized, UnknownModel)},
}
FETCH: dict[str, Any] = {
    "summary": "Fetch a picture that was asked for as URL",
    "tags": ["images"],
    "responses": {
        200: {
            "description": "The picture",
            "content": {
                f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")
            },
        },
        **errors(NotFound),
    },
}
LIVE: dict[str, Any] = {
    "summary": "What it is doing now",
    "tags": ["health"],
    "responses": {200: {"model": Live, "description": "Counts and the plan in force"}, **errors(Unauthorized)},
}
HEALTH: dict[str, Any] = {
    "summary": "Whether the process is alive",
    "tags": ["health"],
    "responses": {200: {"model": Alive, "description": "It is"}},
}
READY: dict[str, Any] = {
    "summary": "Whether it can serve, and what is missing",
    "tags": ["health"],
    "responses": {
        200: {"model": Readiness, "description": "Every role of the plan has a replica"},
        503: {"model": Readiness, "description": "A role of the plan has none"},
    },
}
#: Routes that need no key.
OPEN = frozenset({FILES + "/{name}", "/healthz", "/readyz"})


def describe(app: FastAPI, version: str) -> None:
    """Makes the application's document say what its routes do, and nothing that they do not."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(title="Weir", version=version, description=DESCRIPTION, routes=app.routes)
            components = described["components"]
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; no route answers like that
                components["schemas"].pop(name, None)
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in described["paths"].items():
                for route in methods.values():
                    if "HTTPValidationError" in str(route["responses"].get("422")):
                        del route["responses"]["422"]
                    if path not in OPEN:
                        route["security"] = [{"key": []}, {}]
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

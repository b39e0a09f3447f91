"""The OpenAPI document: schemas of responses, and the errors of each route."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from load_balancer.http.lora_rules import FIELD, LoraRules
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
from weir.image_sizes import SizeRange

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
FILES = "/v1/images/files"

DESCRIPTION = """Text-to-image generation behind OpenAI's images API. A light model generates first. A heavier
model generates again where a discriminator doubts the image. An approximate cache lets runs resume in the middle."""


class Described(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(Described):
    message: str = Field(description="the field, what is wrong with it, and what is accepted")
    type: str = Field(description="the type of error in OpenAI's terms")
    param: str | None = Field(description="the field or header that is wrong")
    code: str = Field(description="stable and machine-readable")


class ErrorBody(Described):
    """The body of every failure."""

    error: Error


class CacheUse(Described):
    """The use of the approximate cache."""

    similarity: float = Field(description="cosine similarity to the nearest cached prompt")
    k: int = Field(description="the denoising step that the run began at; 0 from noise")
    id: str | None = Field(description="id of the cached entry")


class EditUse(Described):
    """How an edit began."""

    strength: float = Field(description="the share of the steps that run, as requested or by default")
    masked: bool = Field(description="whether a mask keeps a part of the image")
    first_step: int = Field(description="the first step that ran; the image was brought to its noise level")


class About(Described):
    """How an image was generated."""

    id: str = Field(description="id of the request, as in `X-Request-Id`")
    path: str = Field(
        description="key of the variant that generated it, such as light or heavy; with -deadline if the next variant "
        "would have been late; cache: the last variant, resumed from a stored state of a similar prompt"
    )
    model: str = Field(description="name of the variant that generated it")
    confidence: float | None = Field(
        description="the discriminator's confidence, 0…1, in the last image of a variant before the last one"
    )
    heavy_confidence: float | None = Field(
        description="the confidence in the last variant's image, where the service generates doubted images again"
    )
    draws: int = Field(description="number of images of the last variant; the answer is the best of them")
    seed: int = Field(description="seed of this image")
    steps: int = Field(description="denoising steps that ran for it")
    batch_size: int = Field(description="images that shared the denoiser's calls with it, itself included, on average")
    queue_s: float = Field(description="seconds in workers' queues")
    compute_s: float = Field(description="seconds of computation")
    latency_s: float = Field(description="seconds from admission to the finished image")
    plan_version: int
    made_with: dict[str, str] = Field(description="versions of the software, and weights as repository@revision")
    cache: CacheUse | None
    edit: EditUse | None = Field(description="null: the image was not made from another one")
    unused_tokens: int = Field(
        description="tokens at the end of the prompt that were not used, because it is longer than 8 windows"
    )
    unused_negative_tokens: int = Field(description="the same of the negative prompt")
    emulated: bool = Field(description="no model ran: the worker slept for its latency, and the image is a placeholder")


class Image(Described):
    b64_json: str | None = Field(None, description="the image in base64")
    url: str | None = Field(
        None, description="URL of the image, valid for ten minutes, or until newer images of its tenant need the room"
    )
    weir: About


class Images(Described):
    """OpenAI's images response, with the field ``weir`` for each image."""

    created: int = Field(description="unix time, seconds")
    data: list[Image]
    output_format: ImageFormat
    size: str = Field(description="size of the images")
    requested_size: str | None = Field(
        None,
        description="the requested size of OpenAI's that this family does not have; the images have the nearest size",
    )
    quality: str
    background: str


class Generation(Described):
    """The status of a request."""

    id: str = Field(description="id of the request, as in `X-Request-Id`")
    object: Literal["image.generation"]
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: int = Field(description="unix time, seconds")
    queue_position: int | None = Field(description="1 for the first waiting image of its replica")
    estimated_s: float | None = Field(description="predicted seconds until the running variant finishes")
    expires_at: int | None = Field(description="unix time, seconds, at which an ended request is removed")
    error: Error | None
    result: Images | None = Field(description="the answer, equal to that of the request itself")


class Model(Described):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="the model that an alias stands for, or the model itself")
    sizes: list[str] = Field(description="sizes that requests may use; the first one is the model's own")
    samplers: list[str] = Field(description="samplers that requests may use; the first is the model's own")
    any_size: SizeRange | None = Field(
        description="range of further sizes that requests may use: both sides lie in `least_side` to `most_side`, are "
        "multiples of `multiple`, and have at most `pixels` pixels; null: there are no others"
    )
    adapters: list[str] = Field(description="names of LoRA adapters that requests may use")
    defaults: dict[str, Any] = Field(
        description="the model's own values of the request's fields that suit it. `guidance_scale` and "
        "`negative_prompt` are absent where a model runs without guidance, `cache` where the service has none, and "
        "steps, guidance and cache where a variant other than the last is named"
    )


class Models(Described):
    object: Literal["list"]
    data: list[Model]


class Alive(Described):
    status: Literal["ok"]


class RoleReplicas(Described):
    planned: int
    ready: int


class PlanInForce(Described):
    version: int
    age_s: float
    threshold: float


class Readiness(Described):
    ready: bool
    pending: list[str] = Field(description="replicas that are still missing")
    replicas: dict[str, RoleReplicas] = Field(description="by role")
    plan: PlanInForce
    in_flight: int = Field(description="images admitted and not answered")


class ServiceFacts(Described):
    family: str
    slo_s: float = Field(description="the deadline, seconds after the request")
    version: str = Field(description="of Weir")
    device: str | None = Field(description="what the times of the profile were measured on; null without a profile")


class Live(Described):
    time: float = Field(description="unix time, seconds")
    ready: bool
    pending: list[str] = Field(description="replicas that are still missing")
    roles: dict[str, RoleReplicas]
    plan_version: int
    threshold: float = Field(
        description="an image of the first variant with a lower confidence is deferred to the next one"
    )
    thresholds: list[float] = Field(description="the thresholds of all judges in use, in order")
    reason: str = Field(description="why the controller made this plan; empty for the configured one")
    policy: str = Field(description="name of the policy that plans; `static` keeps the configured plan")
    service: ServiceFacts = Field(description="what the service is")
    pinned_until: float | None = Field(
        description="unix time, seconds, until which an operator's pin holds the plan or a part of it; null: no pin"
    )
    drained: int = Field(description="number of drained replicas, which get nothing new")
    in_flight: int = Field(description="images admitted and not answered")
    queued: dict[str, int] = Field(description="number of images that wait at the replicas of a role")
    arrivals: int = Field(description="number of requested images; like all counts here, since the start")
    judged: int = Field(description="number of judged images of the first variant")
    deferred: int = Field(description="number of these that were deferred")
    cache: bool = Field(description="whether there is an approximate cache")
    looked_up: int = Field(description="number of images with a cache lookup")
    hits: int = Field(description="number of these that resumed from a stored state")
    demand_rps: float | None = Field(description="requested images per second in the last minute; null at the start")
    answered: int = Field(description="number of answered images")
    late: int = Field(description="number of these that took longer than the deadline")
    refused: int = Field(description="number of images that were not admitted")
    failed: int = Field(description="number of admitted images that failed")


def errors(*kinds: type[WeirError]) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route."""
    described: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        codes = [described[kind.status]["description"]] if kind.status in described else []
        described[kind.status] = {"model": ErrorBody, "description": ", ".join([*codes, f"`{kind.code}`"])}
    return described


_EVENTS = """With `stream`: server-sent events `image_generation.partial_image` and `image_generation.completed` (of an
edit `image_edit.…`) with OpenAI's fields and the field `weir`; a failure ends the stream with an event `error`."""
_GONE = """The request is cancelled before the next denoising step of its worker; other requests continue. A request
that has ended is removed."""

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
            "description": "The response to `Prefer: respond-async`; poll `Location` for the answer",
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
EDIT: dict[str, Any] = {
    **GENERATE,
    "summary": "Edit an image; the form may also be JSON, with data URLs in images and mask",
}
STATUS: dict[str, Any] = {
    "summary": "Get the status of a request",
    "operation_id": "status",
    "tags": ["images"],
    "responses": {
        200: {"model": Generation, "description": "The status"},
        **errors(Unauthorized, NotFound, RateLimited),
    },
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel a request",
    "operation_id": "cancel",
    "tags": ["images"],
    "responses": {200: {"model": Generation, "description": _GONE}, **errors(Unauthorized, NotFound)},
}
LIST_MODELS: dict[str, Any] = {
    "summary": "List the models: the cascade, and each variant",
    "tags": ["models"],
    "responses": {200: {"model": Models, "description": "The models"}, **errors(Unauthorized)},
}
ONE_MODEL: dict[str, Any] = {
    "summary": "Get a model by its name or an alias",
    "tags": ["models"],
    "responses": {200: {"model": Model, "description": "The model"}, **errors(Unauthorized, UnknownModel)},
}
FETCH: dict[str, Any] = {
    "summary": "Get an image that was requested as URL",
    "tags": ["images"],
    "responses": {
        200: {
            "description": "The image",
            "content": {
                f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")
            },
        },
        **errors(NotFound),
    },
}
LIVE: dict[str, Any] = {
    "summary": "Get the current state",
    "tags": ["health"],
    "responses": {200: {"model": Live, "description": "Counts and the plan in force"}, **errors(Unauthorized)},
}
HEALTH: dict[str, Any] = {
    "summary": "Check that the process is alive",
    "tags": ["health"],
    "responses": {200: {"model": Alive, "description": "It is"}},
}
READY: dict[str, Any] = {
    "summary": "Check that the service is ready, and what is missing",
    "tags": ["health"],
    "responses": {
        200: {"model": Readiness, "description": "Every role of the plan has a replica"},
        503: {"model": Readiness, "description": "A role of the plan has no replica"},
    },
}
#: Routes that need no key.
OPEN = frozenset({FILES + "/{name}", "/healthz", "/readyz"})


def describe(app: FastAPI, version: str, loras: LoraRules) -> None:
    """Sets the application's OpenAPI document, from the routes and the schemas of this module.

    Args:
        loras: describes the field ``loras``, whose adapters may change.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(title="Weir", version=version, description=DESCRIPTION, routes=app.routes)
            components = described["components"]
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own schemas, which no route uses
                components["schemas"].pop(name, None)
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in described["paths"].items():
                for route in methods.values():
                    if "HTTPValidationError" in str(route["responses"].get("422")):
                        del route["responses"]["422"]
                    if path not in OPEN:
                        route["security"] = [{"key": []}, {}]
            app.openapi_schema = described
        for path, kind, current in (
            (GENERATIONS, "application/json", loras.described()),
            (EDITS, "multipart/form-data", loras.described_in_form()),
        ):
            body = app.openapi_schema["paths"][path]["post"]["requestBody"]
            body["content"][kind]["schema"]["properties"][FIELD] = current
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

"""Bodies, answers and descriptions of the routes below ``/v1/admin``, which need the scope admin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from load_balancer.http.openapi import Described, errors
from load_balancer.http.responses import to_json
from load_balancer.http.schema import integral
from weir.adapters import NAME, AdapterWeights
from weir.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    NotReady,
    Unauthorized,
    WeirError,
)
from weir.pin import PinValues

#: Shortest and longest time of a pin, seconds.
LEAST_S, MOST_S = 1, 7 * 86400
MOST_REPLICAS, MOST_BATCH, MOST_REASON, MOST_NAME = 100_000, 256, 200, 200

Body = TypeVar("Body", bound=BaseModel)
Count = Annotated[int, Field(ge=0, le=MOST_REPLICAS), BeforeValidator(integral)]
Batch = Annotated[int, Field(ge=1, le=MOST_BATCH), BeforeValidator(integral)]
Name = Annotated[str, Field(min_length=1, max_length=MOST_NAME)]


class _Body(BaseModel):
    """A body. The description of a field says what it accepts, and is quoted in errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PinBody(_Body):
    for_s: float = Field(ge=LEAST_S, le=MOST_S, description=f"seconds until the pin ends, from {LEAST_S} to {MOST_S}")
    replicas: dict[str, Count] = Field(
        {},
        description="number of replicas, 0 or more, by variant, the best one included; they add up to the replicas "
        "that are not drained, and their variants are the chain",
    )
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="threshold in 0…1 by variant of the chain except the last"
    )
    batch: dict[str, Batch] = Field({}, description=f"largest batch by variant of the chain, from 1 to {MOST_BATCH}")
    reason: str = Field("", max_length=MOST_REASON, description=f"a text of at most {MOST_REASON} characters")

    @property
    def values(self) -> PinValues:
        return PinValues(self.replicas or None, self.thresholds or None, self.batch or None)


class PolicyBody(_Body):
    policy: Name = Field(description=f"name of a policy, of at most {MOST_NAME} characters")


class ScaleBody(_Body):
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS), BeforeValidator(integral)] = Field(
        description=f"number of replicas of the pool, a whole number from 1 to {MOST_REPLICAS}"
    )


class DrainBody(_Body):
    force: bool = Field(False, description="true or false; true drains even the last replica that takes work")


class PurgeBody(_Body):
    tenant: Name | None = Field(
        description=f"name of the tenant, of at most {MOST_NAME} characters; null stands for every tenant"
    )


#: Properties that belong to a repository, absent.
_ABSENT: dict[str, Any] = {name: {"type": "null"} for name in ("repository", "revision", "weight_name")}


class AdapterBody(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["file"], "properties": {"file": {"type": "string"}, **_ABSENT}},
                {
                    "required": ["repository", "weight_name"],
                    "properties": {
                        "repository": {"type": "string"},
                        "weight_name": {"type": "string"},
                        "file": {"type": "null"},
                    },
                },
            ]
        }
    )

    name: str = Field(
        pattern=NAME, description="name for requests: 1 to 64 letters, digits, dots, hyphens, underscores"
    )
    file: str | None = Field(
        None,
        pattern=r"^/.*\.safetensors$",
        description="absolute path of a .safetensors file on every machine with replicas",
    )
    repository: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="repository of the Hugging Face hub, such as owner/name"
    )
    revision: Name | None = Field(
        None, description=f"revision of the repository, of at most {MOST_NAME} characters; null: the latest"
    )
    weight_name: str | None = Field(
        None,
        pattern=r"\.safetensors$",
        description="name of a .safetensors file in the repository",
    )

    @property
    def weights(self) -> AdapterWeights:
        """Where its weights are.

        Raises:
            InvalidRequest: there is not one source.
        """
        if (self.file is None) == (self.repository is None):
            raise InvalidRequest("file and repository: give one of them", param="file")
        if self.file is not None and (self.revision or self.weight_name):
            raise InvalidRequest("revision and weight_name belong to a repository", param="revision")
        if self.repository is not None and self.weight_name is None:
            raise InvalidRequest("weight_name is missing: the .safetensors file of the repository", param="weight_name")
        return AdapterWeights(self.file or self.repository or "", self.revision, self.weight_name)


class PlanDescription(Described):
    """The plan in force."""

    version: int
    age_s: float = Field(description="seconds since it came into force")
    origin: str = Field(description="the policy that made it; `pin` with an operator's pin; empty: the configuration")
    reason: str = Field(description="why it is what it is; empty for the configured one")
    chain: list[str] = Field(description="variants in use, from the fastest to the best")
    thresholds: dict[str, float] = Field(description="by variant of the chain except the last")
    replicas: dict[str, int] = Field(description="by role, without drained replicas")
    batch: dict[str, int] = Field(description="largest batch by role")
    admitted_rps: float | None = Field(description="requests per second to admit; null admits all")


class PinDescription(Described):
    """The operator's pin. Without parts it pins the whole plan."""

    reason: str = Field(description="who pinned it, and why")
    until: float = Field(description="unix time, seconds")
    left_s: float = Field(description="seconds until it ends")
    replicas: dict[str, int] | None = Field(None, description="pinned numbers of replicas")
    thresholds: dict[str, float] | None = Field(None, description="pinned thresholds")
    batch: dict[str, int] | None = Field(None, description="pinned batches")


class Replica(Described):
    id: str
    rank: int = Field(description="place in the plan")
    role: str = Field(description="its role in the plan; a drained replica has none in effect")
    state: str = Field(description="serving, drained, starting or not answering")
    in_flight: int = Field(description="images that it has and has not answered")
    node: str | None = Field(description="id of its Ray node")
    pid: int | None = Field(description="process id")
    clock_skew_s: float = Field(
        description="seconds by which the wall clock of its host is ahead of the load balancer's; negative: behind"
    )


class AdminAction(Described):
    at: float = Field(description="unix time, seconds")
    who: str = Field(description="name of the key; `anonymous` without keys")
    action: str = Field(description="pin, unpin, policy, scale, drain, return, purge, add-adapter or remove-adapter")
    what: str
    until: float | None = Field(description="unix time at which it ends by itself; null: it does not")


class AdapterPlace(Described):
    reference: str = Field(description="path of a file, or a repository of the Hugging Face hub")
    revision: str | None = Field(description="of the repository; null: the latest")
    file: str | None = Field(description="file of the repository; null: the reference is a file")


class AdminState(Described):
    """The plan in force, and what operators changed."""

    plan: PlanDescription
    policy: str = Field(description="name of the policy that plans")
    size: int = Field(description="number of replicas that the pool is to have")
    pin: PinDescription | None
    replicas: list[Replica]
    adapters: dict[str, AdapterPlace] = Field(description="LoRA adapters that requests may use, by name")
    actions: list[AdminAction] = Field(description="the last 100 actions, the newest first")


class CacheStatistics(Described):
    """Statistics of the running cache, as its index has them."""

    ready: bool = Field(description="whether it answers lookups; at the start it reads its store first")
    entries: int = Field(description="number of cached prompts")
    states: int = Field(description="number of their states")
    bytes: int = Field(description="size of the states")
    budget_bytes: int = Field(description="largest size of the states")
    tenants: dict[str, int] = Field(description="number of cached prompts by tenant")
    lookups: int = Field(description="number of lookups since the start of the cache")
    served: dict[str, int] = Field(description="number of requests since then by the step that they resumed at")
    inserted: int = Field(description="number of states inserted since then")
    evicted: int = Field(description="number of states evicted since then")


class Purged(Described):
    entries: int = Field(description="number of prompts that were removed from the index")
    values: int = Field(description="number of values that were deleted from the store")


def parsed(kind: type[Body], raw: bytes) -> Body:
    """Reads a body.

    Raises:
        InvalidRequest: it is invalid; ``param`` and the message name the field and what it accepts.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    known = ", ".join(kind.model_fields)
    if problem["type"] == "json_invalid":
        raise InvalidRequest(f"the body is not valid JSON: {problem['ctx']['error']}")
    if not problem["loc"]:
        raise InvalidRequest(f"the body has to be a JSON object with the fields {known}")
    field, param = str(problem["loc"][0]), ".".join(map(str, problem["loc"]))[:64]
    if problem["type"] == "extra_forbidden":
        raise InvalidRequest(f"there is no field {field[:64]!r}; known fields: {known}", param=param)
    wrong = "is missing" if problem["type"] == "missing" else f"is {to_json(problem['input']).decode()[:64]}"
    raise InvalidRequest(f"{param} {wrong}; accepted: {kind.model_fields[field].description}", param=param)


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _route(
    summary: str, answer: type[BaseModel], what: str, *kinds: type[WeirError], body: type[BaseModel] | None = None
) -> dict[str, Any]:
    """Description of a route, for FastAPI's decorators."""
    reads = () if body is None else (InvalidRequest, BodyTooSlow, BodyTooLarge)
    return {
        "summary": summary,
        "tags": ["admin"],
        "responses": {
            200: {"model": answer, "description": what},
            **errors(*reads, Unauthorized, Forbidden, *kinds, WeirError),
        },
        **({} if body is None else {"openapi_extra": _body(body)}),
    }


_STATE = "The plan in force, and what operators changed"
SHOW = _route("Get the plan in force, its reason, the replicas, and what operators changed", AdminState, _STATE)


def set_pin(variants: Iterable[str]) -> dict[str, Any]:
    """Description of the route that pins, for replicas that hold these variants."""
    route = _route(
        "Pin the plan or a part of it for a time; fields that are left out stay with the policy",
        AdminState,
        f"{_STATE}; the controller publishes the pinned plan within seconds",
        Conflict,
        body=PinBody,
    )
    fields = route["openapi_extra"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    for name in PinValues.__slots__:
        by_variant = fields[name]
        by_variant["properties"] = dict.fromkeys(variants, by_variant["additionalProperties"])
        by_variant["additionalProperties"] = False
    return route


UNPIN = _route("End the pin", AdminState, f"{_STATE}; without a pin nothing changes")
SWITCH = _route(
    "Let another policy plan",
    AdminState,
    f"{_STATE}; the plan in force stays until the policy's first one",
    Conflict,
    NotReady,
    body=PolicyBody,
)
SCALE = _route(
    "Give the pool another number of replicas",
    AdminState,
    f"{_STATE}; the controller publishes a plan for that number within seconds",
    Conflict,
    body=ScaleBody,
)
DRAIN = _route(
    "Drain a replica: it finishes what it has, and gets nothing new",
    AdminState,
    _STATE,
    NotFound,
    Conflict,
    body=DrainBody,
)
RETURN = _route("Return a drained replica to work", AdminState, _STATE, NotFound)
ADD = _route(
    "Add a LoRA adapter, which requests may use from now on",
    AdminState,
    f"{_STATE}; every replica has checked that the adapter fits its models",
    Conflict,
    NotReady,
    body=AdapterBody,
)
REMOVE = _route(
    "Remove a LoRA adapter; admitted requests are finished with it",
    AdminState,
    _STATE,
    NotFound,
)
CACHE = _route("Get statistics of the running cache", CacheStatistics, "The statistics", Conflict, NotReady)
PURGE = _route(
    "Delete what a tenant or all tenants have cached, in the index and in the store",
    Purged,
    "How much was deleted",
    Conflict,
    NotReady,
    body=PurgeBody,
)

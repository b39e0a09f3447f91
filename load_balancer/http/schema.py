"""The fields of requests for images and for edits: OpenAI's, and extensions in use with other services.

Every mistake raises an :class:`InvalidRequest` that names the field and the values that it accepts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from load_balancer.http.edit_pictures import ACCEPTED, EditPictures
from load_balancer.http.headers import MOST_KEY_CHARACTERS
from load_balancer.http.lora_rules import FIELD, LoraBody, LoraRules
from load_balancer.runner.generation_request import CacheMode, GenerationRequest, ImageFormat
from weir import prompts
from weir.adapters import AdapterWeights
from weir.config import FamilyConfig, LimitsConfig
from weir.core import Edit, ImageSize
from weir.errors import InvalidRequest, UnknownModel
from weir.prompts import BAD_WEIGHT, MOST_WEIGHT, PromptSyntax
from weir.samplers import DISTILLED_STEPS, Scheduler, check_steps, most_steps

#: Any character but white space and control characters, by every language's definition of ``\\s``.
SOMETHING = re.compile(r"[^\s\x00-\x1f\x7f-\xa0\ufeff]")
MOST_GUIDANCE = 30.0
#: Seeds have 64 bits; -1 stands for any seed, as in other tools.
ANY_SEED, MOST_SEED = -1, 2**64 - 1
MOST_TAG_CHARACTERS = 512
#: Share of the steps that an edit runs by default; those of an edit with a mask run all.
DEFAULT_STRENGTH = 0.75
#: The limit of OpenAI's API.
MOST_PARTIAL_IMAGES = 3
#: Default sizes of OpenAI's clients; a family without one of them uses its nearest size.
OPENAI_SIZES = ("256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792")
#: Prefixes of OpenAI's models that answer with URLs by default; so do aliases of these names.
URL_MODELS = ("dall-e-",)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Name, schema and meaning of the request headers.
HEADERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": MOST_KEY_CHARACTERS, "pattern": "^[!-~]([ -~]*[!-~])?$"},
        "a request that is sent again with the same key is generated once, and gets the same answer",
    ),
    ("Prefer", {"type": "string"}, "`respond-async` answers 202 at once, `respond-async, wait=N` after N seconds"),
)


def integral(value: object) -> object:
    """A whole number that JSON writes with a point, as an integer; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: An integer by JSON schema, which includes 7.0.
Integer = Annotated[int, BeforeValidator(integral)]


class GenerationBody(BaseModel):
    """The types of the body. :class:`RequestRules` checks the ranges, which depend on the service. null: the
    default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str
    model: str | None = None
    n: Integer | None = None
    size: str | None = None
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: ImageFormat | None = None
    output_compression: Integer | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    partial_images: Integer | None = None
    negative_prompt: str | None = None
    seed: Integer | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: float | None = None
    sampler: Scheduler | None = None
    prompt_syntax: PromptSyntax | None = None
    loras: list[LoraBody] | None = None
    cache: CacheMode | None = None


Body = TypeVar("Body", bound=GenerationBody)


class EditBody(GenerationBody):
    """The types of an edit's fields, except its pictures."""

    strength: float | None = None
    input_fidelity: Literal["high", "low"] | None = None


class RequestRules:
    """Reads and checks bodies by the limits of this service."""

    def __init__(
        self,
        family: FamilyConfig,
        limits: LimitsConfig,
        aliases: Mapping[str, str] | None = None,
        prompt_syntax: PromptSyntax = "plain",
        adapters: Mapping[str, AdapterWeights] | None = None,
    ):
        """
        Args:
            aliases: additional model names → the models they stand for.
            prompt_syntax: of requests that name none.
            adapters: weights of the LoRA adapters by name, which may change; None: those of the family file.
        """
        self._family = family
        self._prompt_syntax = prompt_syntax
        self.loras = LoraRules(family.adapter_weights if adapters is None else adapters)
        #: Sizes of images within the limits of this service.
        self.sizes = family.allowed_sizes.within(limits.pixels)
        openai = {size: ImageSize.of(size) for size in OPENAI_SIZES}
        self._stand_ins = {name: self.sizes.nearest(size) for name, size in openai.items() if size not in self.sizes}
        #: Variants by model name; None is the cascade.
        self.models: dict[str, str | None] = {
            family.name: None,
            **{f"{family.name}/{key}": key for key in family.keys},
        }
        self.models |= {alias: self.models[model] for alias, model in (aliases or {}).items()}
        #: Smallest and largest value of a number.
        self.ranges: dict[str, tuple[float, float]] = {
            "n": (1, limits.images),
            "output_compression": (0, 100),
            "partial_images": (0, MOST_PARTIAL_IMAGES),
            "seed": (ANY_SEED, MOST_SEED),
            "num_inference_steps": (1, limits.steps),
            "guidance_scale": (0, MOST_GUIDANCE),
        }
        self._longest = {
            "prompt": limits.prompt_characters,
            "negative_prompt": limits.prompt_characters,
            "user": MOST_TAG_CHARACTERS,
            "safety_identifier": MOST_TAG_CHARACTERS,
        }
        self.accepted = self._accepted_values(limits)

    def _accepted_values(self, limits: LimitsConfig) -> dict[str, str]:
        """What each field accepts, in words."""
        return {
            **_choices(EditBody),
            "prompt": f"a string of 1 to {limits.prompt_characters} characters",
            "negative_prompt": f"a string of at most {limits.prompt_characters} characters",
            "model": " or ".join(self.models),
            "n": f"an integer from 1 to {limits.images}",
            "size": f"auto or {self.sizes}" + ("; OpenAI's sizes give the nearest" if self._stand_ins else ""),
            "output_compression": "an integer from 0 to 100; below 100 only for jpeg and webp",
            "user": f"a string of at most {MOST_TAG_CHARACTERS} characters",
            "safety_identifier": f"a string of at most {MOST_TAG_CHARACTERS} characters",
            "stream": "true or false; true sends server-sent events that contain the images",
            "partial_images": f"an integer from 0 to {MOST_PARTIAL_IMAGES}; above 0 with stream",
            "seed": f"an integer from 0 to {MOST_SEED}; {ANY_SEED} is any",
            "num_inference_steps": f"an integer from 1 to {limits.steps}",
            "guidance_scale": f"a number from 0 to {MOST_GUIDANCE:g}",
            "sampler": " or ".join(self._family.allowed_samplers),
            "prompt_syntax": "plain or weighted; weighted gives (text:1.3) the weight 1.3, from 0 to "
            f"{MOST_WEIGHT:g}; default: {self._prompt_syntax}",
            "strength": "a number above 0, at most 1: the share of the steps that run; by default "
            f"{DEFAULT_STRENGTH:g}, and 1 with a mask",
        }

    def read(self, raw: bytes) -> GenerationRequest:
        """Reads and checks a body.

        Raises:
            InvalidRequest, UnknownModel: ``param`` names the field.
        """
        body = self._checked(GenerationBody, raw)
        return self._request(body, self._size(body.size), None)

    def read_edit(self, raw: bytes) -> EditBody:
        """Reads and checks the fields of an edit, before its pictures are looked at.

        Raises:
            InvalidRequest, UnknownModel: ``param`` names the field.
        """
        body = self._checked(EditBody, raw)
        if body.strength is not None and not 0 < body.strength <= 1:
            raise self._refusal("strength", f"is {_shown(body.strength)}")
        if body.cache not in (None, "off"):
            raise InvalidRequest(f"cache is {body.cache}; accepted for an edit: off", param="cache")
        return body

    def size_of_edit(self, body: EditBody, image: ImageSize) -> ImageSize:
        """The size that is generated for an image of a size: by default its own, or the nearest one.

        Raises:
            InvalidRequest: the service generates no images of the requested size.
        """
        if body.size not in (None, "auto"):
            return self._size(body.size)
        return self.sizes.for_picture(image)

    def edit(self, body: EditBody, pictures: EditPictures) -> GenerationRequest:
        """The request of an edit."""
        strength = body.strength or default_strength(pictures)
        return self._request(body, pictures.size, Edit(pictures.image, pictures.mask, strength))

    def _checked(self, kind: type[Body], raw: bytes) -> Body:
        raw = raw.removeprefix(BYTE_ORDER_MARK)
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"byte {error.start} of the body (0x{raw[error.start]:02x}) is not UTF-8; accepted: JSON in UTF-8"
            ) from None
        try:
            body = kind.model_validate_json(raw)
        except ValidationError as error:
            raise self._explained(error, kind) from None
        self._check_ranges(body)
        return body

    def _request(self, body: GenerationBody, size: ImageSize, edit: Edit | None) -> GenerationRequest:
        return GenerationRequest(
            prompt=body.prompt,
            size=size,
            n=1 if body.n is None else body.n,
            variant=self.models[body.model or self._family.name],
            negative_prompt=body.negative_prompt or "",
            prompt_syntax=self._syntax(body),
            seed=None if body.seed == ANY_SEED else body.seed,
            steps=body.num_inference_steps,
            guidance=body.guidance_scale,
            sampler=body.sampler,
            adapters=self.loras.read(body.loras or ()),
            edit=edit,
            cache=body.cache,
            stream=bool(body.stream),
            partial_images=body.partial_images or 0,
            moderation=body.moderation,
            response_format=body.response_format or _default_format(body),
            output_format=body.output_format or "png",
            compression=100 if body.output_compression is None else body.output_compression,
            quality=body.quality or "auto",
            requested_size=body.size if body.size in self._stand_ins else None,
        )

    def known_model(self, name: str) -> str:
        """Returns the name of an existing model or alias.

        Raises:
            UnknownModel: there is none; the message lists the existing models.
        """
        if name not in self.models:
            raise UnknownModel(
                f"there is no model {_shown(name)}; accepted: {self.accepted['model']}; "
                "`aliases` in the service file gives a model additional names",
                param="model",
            )
        return name

    def described(self) -> dict[str, Any]:
        """The request in the OpenAPI document: the headers, and a schema that accepts exactly the bodies that
        :meth:`read` accepts."""
        return _described(self._schema(GenerationBody), "application/json")

    def described_edit(self) -> dict[str, Any]:
        """An edit as a form in the OpenAPI document."""
        schema = self._schema(EditBody)
        properties: dict[str, Any] = {
            "image": {"type": "string", "format": "binary", "description": f"{ACCEPTED}; also as `image[]`"},
            "mask": {
                "type": "string",
                "format": "binary",
                "description": "a PNG of the image's size; what is fully transparent is generated, and the rest stays",
            },
        }
        for name, field in schema["properties"].items():  # a form has no null
            kinds = [it for it in field.get("anyOf", [field]) if it.get("type") != "null"]
            properties[name] = {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
            properties[name]["description"] = field["description"]
        properties[FIELD] = self.loras.described_in_form()
        properties["strength"] |= {"exclusiveMinimum": 0, "maximum": 1}
        properties["cache"] |= {"enum": ["off"], "description": "off: an edit uses no cached state, and leaves none"}
        # Tools that make forms with files cannot evaluate conditions between fields.
        form = {"type": "object", "properties": properties, "required": ["image", "prompt"]}
        return _described({**form, "additionalProperties": False}, "multipart/form-data")

    def _schema(self, kind: type[GenerationBody]) -> dict[str, Any]:
        """JSON schema of a body."""
        schema = kind.model_json_schema()
        limits: dict[str, dict[str, Any]] = {
            **{name: {"minimum": least, "maximum": most} for name, (least, most) in self.ranges.items()},
            **{name: {"maxLength": longest} for name, longest in self._longest.items()},
            "model": {"enum": list(self.models)},
            "sampler": {"enum": list(self._family.allowed_samplers)},
        }
        limits["prompt"] |= {"minLength": 1, "pattern": SOMETHING.pattern}
        for name, limit in limits.items():
            field = schema["properties"][name]
            field.get("anyOf", [field])[0].update(limit)
        schema["properties"]["size"] = {"anyOf": [*self._described_sizes(), {"type": "null"}], "default": None}
        for name, field in schema["properties"].items():
            field.pop("title", None)
            field["description"] = self.accepted.get(name, "")
        schema.pop("$defs")
        schema["properties"][FIELD] = self.loras.described()
        schema["allOf"] = [
            _implies({"output_format": {"enum": ["png", None]}}, {"output_compression": {"enum": [100, None]}}),
            _implies({"stream": {"enum": [False, None]}}, {"partial_images": {"enum": [0, None]}}),
            _implies({"response_format": {"const": "url"}}, {"stream": {"enum": [False, None]}}, ["response_format"]),
            self._described_weights(),
            *self._described_samplers(),
        ]
        return schema

    def _check_ranges(self, body: GenerationBody) -> None:
        if not SOMETHING.search(body.prompt):
            raise self._refusal("prompt", "is empty")
        for text, longest in self._longest.items():
            if len(getattr(body, text) or "") > longest:
                raise self._refusal(text, f"has {len(getattr(body, text))} characters")
        for text in ("prompt", "negative_prompt"):
            prompts.check_weights(text, getattr(body, text) or "", self._syntax(body))
        if body.model is not None:
            self.known_model(body.model)
        self._size(body.size)
        for name, (least, most) in self.ranges.items():
            value = getattr(body, name)
            if value is not None and not least <= value <= most:
                raise self._refusal(name, f"is {_shown(value)}")
        self._check_sampler(body)
        if body.output_format in (None, "png") and body.output_compression not in (None, 100):
            raise self._refusal("output_compression", f"is {body.output_compression} for png")
        if body.partial_images and not body.stream:
            raise self._refusal("partial_images", f"is {body.partial_images} without stream")
        if body.stream and body.response_format == "url":
            raise self._refusal("stream", "is true, but response_format is url")

    def _syntax(self, body: GenerationBody) -> PromptSyntax:
        return body.prompt_syntax or self._prompt_syntax

    def _size(self, given: str | None) -> ImageSize:
        """The size of the images of a request.

        Raises:
            InvalidRequest: the service generates no images of the requested size.
        """
        if given in (None, "auto"):
            return self.sizes.own
        if given in self._stand_ins:
            return self._stand_ins[given]
        try:
            size = ImageSize.of(given)
        except ValueError:
            raise self._refusal("size", f"is {_shown(given)}") from None
        if size not in self.sizes or str(size) != given:
            raise self._refusal("size", f"is {_shown(given)}")
        return size

    def _described_sizes(self) -> list[dict[str, Any]]:
        """JSON schemas of the strings that name a size; each size has one form."""
        described: list[dict[str, Any]] = [
            {"type": "string", "enum": ["auto", *map(str, self.sizes), *self._stand_ins]}
        ]
        if self.sizes.others is not None:
            described.append({"type": "string", "pattern": self.sizes.others.pattern})
        return described

    def _check_sampler(self, body: GenerationBody) -> None:
        """Checks the sampler against the model that it is for, and the number of steps against the sampler."""
        last = self._family.keys[-1]
        variant = self.models[body.model or self._family.name] or last
        allowed = self._family.samplers_of(variant)
        if body.sampler is not None and body.sampler not in allowed:
            raise InvalidRequest(
                f"sampler is {body.sampler}; accepted by {variant}: {' or '.join(allowed)}", param="sampler"
            )
        if variant == last:
            check_steps(body.sampler or allowed[0], body.num_inference_steps or 1)

    def _described_weights(self) -> dict[str, Any]:
        """The JSON schema of what :func:`weir.prompts.check_weights` checks."""
        weighted: dict[str, Any] = {"enum": ["weighted", *([None] if self._prompt_syntax == "weighted" else [])]}
        in_range = {"not": {"type": "string", "pattern": BAD_WEIGHT}}
        required = [] if self._prompt_syntax == "weighted" else ["prompt_syntax"]
        return _implies({"prompt_syntax": weighted}, dict.fromkeys(("prompt", "negative_prompt"), in_range), required)

    def _described_samplers(self) -> Iterator[dict[str, Any]]:
        """JSON schemas of what :meth:`_check_sampler` checks."""
        family, last = self._family, self._family.keys[-1]
        for model, variant in self.models.items():
            if variant not in (None, last):
                own = {"enum": [*family.samplers_of(variant), None]}
                yield _implies({"model": {"const": model}}, {"sampler": own}, ["model"])
        limited: list[Scheduler | None] = [it for it in family.allowed_samplers if most_steps(it) is not None]
        if family.heavy.scheduler in limited:
            limited.append(None)
        if limited:
            of_last = [model for model, variant in self.models.items() if variant in (None, last)]
            given = {"sampler": {"enum": limited}, "model": {"enum": [*of_last, None]}}
            most = {"num_inference_steps": {"maximum": DISTILLED_STEPS}}
            yield _implies(given, most, [] if None in limited else ["sampler"])

    def _refusal(self, param: str, problem: str) -> InvalidRequest:
        accepted = self.loras.accepted if param == FIELD else self.accepted[param]
        return InvalidRequest(f"{param} {problem}; accepted: {accepted}", param=param)

    def _explained(self, error: ValidationError, kind: type[GenerationBody]) -> InvalidRequest:
        problem, known = error.errors(include_url=False)[0], ", ".join(kind.model_fields)
        if problem["type"] == "json_invalid":
            return InvalidRequest(f"the body is not valid JSON: {problem['ctx']['error']}")
        if not problem["loc"]:
            return InvalidRequest(f"the body has to be a JSON object with the fields {known}")
        param, inner = str(problem["loc"][0]), len(problem["loc"]) > 1
        if problem["type"] == "extra_forbidden" and not inner:
            return InvalidRequest(
                f"there is no field {_shown(param)}; known fields: {known}",
                param=param[:64],
            )
        if problem["type"] == "missing" and not inner:
            return self._refusal(param, "is missing")
        return self._refusal(param, f"is {_shown(problem['input'])}")


def default_strength(pictures: EditPictures) -> float:
    """The strength of an edit without one of its own: 1 with a mask, because all that it marks is to be replaced."""
    return DEFAULT_STRENGTH if pictures.mask is None else 1.0


def _default_format(body: GenerationBody) -> Literal["url", "b64_json"]:
    """The format when none is requested: clients of OpenAI's older models read the URL."""
    return "url" if (body.model or "").startswith(URL_MODELS) and not body.stream else "b64_json"


def _described(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "parameters": [
            {"name": name, "in": "header", "required": False, "schema": values, "description": what}
            for name, values, what in HEADERS
        ],
    }


def _implies(given: dict[str, Any], then: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON schema by which properties ``given`` imply ``then``; absent properties count as given unless required."""
    return {"if": {"properties": given, "required": list(required)}, "then": {"properties": then}}


def _choices(kind: type[GenerationBody]) -> dict[str, str]:
    """The values of the fields that have a list of them."""
    literals = {name: _literals(field.annotation) for name, field in kind.model_fields.items()}
    return {name: " or ".join(values) for name, values in literals.items() if values}


def _literals(annotation: Any) -> tuple[str, ...]:
    """The values of a ``Literal[...] | None``."""
    for part in getattr(annotation, "__args__", ()):
        if getattr(part, "__origin__", None) is Literal:
            return part.__args__
    return ()


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool | None) else {True: "true", False: "false", None: "null"}[value]
    return text if len(text) <= 64 else f"{text[:61]}..."

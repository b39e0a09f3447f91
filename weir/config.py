"""The configuration: pydantic models read from YAML. Errors name the file, the key, the accepted range and the remedy.

A *service* file (``deploy/configs/*.yaml``) configures what ``weir up`` starts. It names a *family* file
(``deploy/families/*.yaml``), which defines the variants and the locations of their weights.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from weir.adapters import NAME as ADAPTER_NAME
from weir.adapters import AdapterUse, AdapterWeights
from weir.errors import ConfigError
from weir.image_sizes import AllowedSizes, SizeField, SizeRange
from weir.moderation import Moderation
from weir.own_code import is_own
from weir.plan import HEAVY, LIGHT, Assignment, Plan
from weir.prompts import PromptSyntax
from weir.samplers import Scheduler, most_steps
from weir.secrecy import MAY_HOLD_SECRETS, key_name, without_credentials
from weir.yaml_files import read_mapping, whole_number

#: Requests of priority ``batch`` have this many times the deadline, and all other requests precede them.
BATCH_SLACK = 10.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


#: Name of a set of weight files, such as fp16 of ``model.fp16.safetensors``.
FileSet: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
#: The set of the files without one in their names.
PLAIN = "plain"
#: Value of a variant's ``discriminator`` for the score of the family's CLIP.
CLIP_SCORE = "clip"
#: Pattern of a variant's key, which is part of model names, metric labels and paths in answers.
KEY = re.compile(r"[a-z][a-z0-9-]*")
#: Largest number of replicas of a variant.
MOST_REPLICAS = 4096
#: Defaults of a plan.
BATCH, THRESHOLD = 4, 0.5


class VariantConfig(_Strict):
    """One variant of a family.

    The weights are a complete diffusers pipeline (``pipeline``), or the family's shared parts with another UNet
    (``unet``): a diffusers folder or a single safetensors file, as for SDXL-Lightning. Both are local paths or names of
    hub repositories; ``unet_file`` selects one file of the repository.
    """

    name: str = Field(description="shown in answers and metrics, e.g. sdxl-lightning-4step")
    pipeline: str | None = None
    revision: str | None = None
    shares_encoders: bool = Field(
        False,
        description="whether the variant's pipeline has the family's text encoders and VAE: then only its denoiser and "
        "its scheduler are loaded",
    )
    checkpoint: str | None = Field(
        None, description="whole model in one safetensors file, with the configurations of the variant's pipeline"
    )
    unet: str | None = None
    unet_file: str | None = None
    inpainting: str | None = Field(
        None,
        description="inpainting pipeline, folder or hub repository, whose UNet of 9 channels runs edits with a mask; "
        "default: the variant's own denoiser does",
    )
    inpainting_revision: str | None = Field(None, description="of the repository; default: the latest")
    weights: FileSet | None = Field(
        None, description="file set of its own pipeline, unet or inpainting, or plain; default: the family's"
    )
    scheduler: Scheduler
    steps: int = Field(ge=1, le=200)
    guidance: float = Field(ge=0, le=30, description="classifier-free guidance scale; 0 or 1 turns it off")
    discriminator: str | None = Field(
        None,
        description="judge of the variant's images: folder of a discriminator, clip for the score of the family's "
        "clip, or module:name of your own; needed if a cascade defers images of the variant",
    )

    @property
    def discriminator_folder(self) -> str | None:
        """Folder of the trained discriminator; None for a CLIP's score, for one's own code, and without a judge."""
        it = self.discriminator
        return None if it is None or it == CLIP_SCORE or is_own(it) else it

    @model_validator(mode="after")
    def _one_source(self) -> VariantConfig:
        if self.pipeline and (self.unet or self.unet_file):
            raise ValueError("give either pipeline or unet (with unet_file where needed), not both")
        if self.checkpoint and not self.pipeline:
            raise ValueError("checkpoint needs pipeline: the folder with the configurations of the model")
        if self.shares_encoders and (self.checkpoint or not self.pipeline):
            raise ValueError("shares_encoders needs a pipeline, whose denoiser is loaded, and no checkpoint")
        if self.unet_file and not self.unet:
            raise ValueError("unet_file needs unet: the repository or folder that holds the file")
        if self.inpainting_revision and not self.inpainting:
            raise ValueError("inpainting_revision needs inpainting: the repository that it is of")
        whole = (self.pipeline or self.unet) and not (self.checkpoint or self.unet_file)
        if self.weights and not (whole or self.inpainting):
            raise ValueError(
                "weights names a file set of the variant's own pipeline, unet or inpainting; it loads no such folder"
            )
        if (most := most_steps(self.scheduler)) is not None and self.steps > most:
            raise ValueError(f"steps is {self.steps}; {self.scheduler} runs 1 to {most}")
        return self


class AdapterConfig(_Strict):
    """A LoRA adapter in the format of kohya, diffusers or PEFT: a safetensors file, or one in a hub repository."""

    file: str | None = Field(None, description="path of a safetensors file")
    repository: str | None = Field(None, description="hub repository with the file")
    revision: str | None = Field(None, description="of the repository; default: the latest")
    weight_name: str | None = Field(None, pattern=r"\.safetensors$", description="file of the repository")

    @model_validator(mode="after")
    def _one_source(self) -> AdapterConfig:
        if (self.file is None) == (self.repository is None):
            raise ValueError("give either file or repository")
        if self.file is not None and (self.revision or self.weight_name):
            raise ValueError("revision and weight_name belong to a repository; leave them out beside file")
        if self.repository is not None and self.weight_name is None:
            raise ValueError("weight_name is missing: the .safetensors file of the repository")
        if self.file is not None and not self.file.endswith(".safetensors"):
            raise ValueError("file is not a .safetensors file; other formats can run code when loaded")
        return self

    @property
    def weights(self) -> AdapterWeights:
        """Where its weights are."""
        return AdapterWeights(self.file or self.repository or "", self.revision, self.weight_name)


class FamilyConfig(_Strict):
    """A ladder of variants that serve one model together, from the fastest to the best.

    A file has ``variants`` or, for a ladder of two, ``light``, ``heavy`` and the light variant's ``discriminator``.
    """

    name: str
    pipeline: str = Field(description="diffusers pipeline with the shared parts: local folder or hub repository")
    revision: str | None = None
    checkpoint: str | None = Field(
        None, description="whole model in one safetensors file, with the configurations of the family's pipeline"
    )
    vae: str | None = Field(
        None, description="VAE of all variants instead of their pipelines' own: folder or hub repository of diffusers"
    )
    vae_revision: str | None = None
    textual_inversions: dict[Annotated[str, Field(pattern=r"^<[^<>\s]+>$")], str] = Field(
        {}, description="safetensors file of each word that they add to prompts, written <word>"
    )
    adapters: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], AdapterConfig] = Field(
        {}, description="LoRA adapters that requests may name, by name"
    )
    adapters_mib: int = Field(
        1024, ge=1, description="memory of a replica for adapters; those that were not used for longest make room"
    )
    eight_bit_encoders: tuple[str, ...] = Field(
        (),
        description="text encoders, e.g. text_encoder_2, whose linear layers are kept in 8 bits: half of their memory",
    )
    weights: FileSet | None = Field(
        None, description="file set of the repositories, such as fp16; default: the files without one in their names"
    )
    size: SizeField = Field(description="of images whose request names none: WIDTHxHEIGHT, or the side of a square")
    sizes: tuple[SizeField, ...] = Field((), description="other sizes that requests may name, as for `size`")
    any_size: SizeRange | None = Field(
        None, description="range of further sizes that requests may name; null: only those that are listed"
    )
    samplers: tuple[Scheduler, ...] = Field(
        (), description="samplers that requests may choose for the last variant instead of its own"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    compile: bool = Field(False, description="use torch.compile: minutes of warm-up for faster steps on CUDA")
    variants: dict[str, VariantConfig] = Field(description="by key, in order; or light, heavy and discriminator")
    clip: str | None = Field(None, description="CLIP for similarity and CLIP score: local folder or hub repository")
    clip_revision: str | None = None
    safety_checker: str | None = Field(
        None,
        description="checker of finished images: folder or hub repository of Stable Diffusion's safety checker, or "
        "module:name of your own. Default: no image is checked",
    )
    safety_checker_revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """Converts ``light``, ``heavy`` and ``discriminator`` to a ladder of two."""
        if not isinstance(given, Mapping) or not {LIGHT, HEAVY, "discriminator"} & given.keys():
            return given
        if "variants" in given:
            raise ValueError("give either variants, or light, heavy and discriminator")
        fields = {key: value for key, value in given.items() if key not in (LIGHT, HEAVY, "discriminator")}
        if missing := [key for key in (LIGHT, HEAVY) if key not in given]:
            raise ValueError(f"{missing[0]} is missing; a family has at least two variants")
        light = given[LIGHT]
        if isinstance(light, Mapping) and given.get("discriminator") is not None:
            light = {**light, "discriminator": given["discriminator"]}
        return {**fields, "variants": {LIGHT: light, HEAVY: given[HEAVY]}}

    @model_validator(mode="after")
    def _different_sizes(self) -> FamilyConfig:
        listed = self.allowed_sizes.listed
        if len(set(listed)) < len(listed):
            raise ValueError(f"size, sizes: {', '.join(map(str, listed))}; name each size once")
        return self

    @model_validator(mode="after")
    def _a_ladder(self) -> FamilyConfig:
        if len(self.variants) < 2:
            raise ValueError("variants: a family has at least two, from the fastest to the best")
        for key, variant in self.variants.items():
            if not KEY.fullmatch(key) or key == "cache" or key.endswith("-deadline"):
                raise ValueError(
                    f"variants: {key!r} is not a valid key; it must consist of lower-case letters, digits and "
                    "hyphens, begin with a letter, and be neither cache nor end in -deadline"
                )
            if variant.discriminator == CLIP_SCORE and self.clip is None:
                raise ValueError(f"{key}: its discriminator is clip, and no clip is named")
        last = self.keys[-1]
        if self.variants[last].discriminator is not None:
            raise ValueError(f"{last}: the last variant defers no images; leave out its discriminator")
        names = [variant.name for variant in self.variants.values()]
        if len(set(names)) < len(names):
            raise ValueError(f"variants have the names {', '.join(names)}; each needs a different one")
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """Model names that requests may use: the cascade, and each variant."""
        return (self.name, *(f"{self.name}/{key}" for key in self.keys))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the variants, from the fastest to the best."""
        return tuple(self.variants)

    @property
    def light(self) -> VariantConfig:
        """The first variant, the fastest."""
        return self.variants[self.keys[0]]

    @property
    def heavy(self) -> VariantConfig:
        """The last variant, the best."""
        return self.variants[self.keys[-1]]

    def file_set(self, key: str | None = None) -> str | None:
        """The file set of the shared pipeline, or of a variant's own pipeline or UNet.

        Returns:
            None: the files without a set in their names.
        """
        weights = (key and self.variants[key].weights) or self.weights
        return None if weights == PLAIN else weights

    @property
    def discriminator(self) -> str | None:
        """The first variant's discriminator, which also judges images of the last variant on request."""
        return self.light.discriminator

    @property
    def allowed_samplers(self) -> tuple[Scheduler, ...]:
        """Samplers that requests may use for the last variant; the first one is its own."""
        return tuple(dict.fromkeys((self.heavy.scheduler, *self.samplers)))

    def samplers_of(self, key: str) -> tuple[Scheduler, ...]:
        """Samplers of a variant; the first one is its own."""
        return self.allowed_samplers if key == self.keys[-1] else (self.variants[key].scheduler,)

    @property
    def adapter_weights(self) -> dict[str, AdapterWeights]:
        """Where the weights of its adapters are, by name."""
        return {name: it.weights for name, it in self.adapters.items()}

    @property
    def adapter_uses(self) -> list[AdapterUse]:
        """Its adapters, each with the scale 1."""
        return [AdapterUse(name, 1.0, weights) for name, weights in self.adapter_weights.items()]

    @property
    def allowed_sizes(self) -> AllowedSizes:
        """Sizes that requests may name."""
        return AllowedSizes((self.size, *self.sizes), self.any_size)


class PlanConfig(_Strict):
    """The first plan of a service; under the policy ``static`` it is the only one.

    Its chain consists of the variants in ``replicas``. For a ladder of light and heavy, a file may use
    ``light_replicas``, ``heavy_replicas``, ``light_batch``, ``heavy_batch`` and ``threshold`` instead.
    """

    replicas: dict[str, Annotated[int, Field(ge=0, le=MOST_REPLICAS)]] = Field(
        description="by variant; must include the last variant"
    )
    batch: dict[str, Annotated[int, Field(ge=1, le=256)]] = Field({}, description="largest batch by variant; default 4")
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="by variant of the chain except the last; default 0.5"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """Converts the keys for a ladder of two to the general form."""
        if not isinstance(given, Mapping):
            return given
        short = {f"{key}_{what}": (what, key) for key in (LIGHT, HEAVY) for what in ("replicas", "batch")}
        short["threshold"] = ("thresholds", LIGHT)
        if not short.keys() & given.keys():
            return given
        if mixed := {"replicas", "batch", "thresholds"} & given.keys():
            raise ValueError(f"give either {', '.join(sorted(mixed))} by variant, or {', '.join(short)}")
        if missing := [key for key in ("light_replicas", "heavy_replicas") if key not in given]:
            raise ValueError(f"{missing[0]} is missing")
        fields: dict[str, Any] = {key: value for key, value in given.items() if key not in short}
        for name, (what, key) in short.items():
            if name in given:
                fields.setdefault(what, {})[key] = given[name]
        return fields

    @model_validator(mode="after")
    def _some_replica(self) -> PlanConfig:
        if self.size == 0:
            raise ValueError("replicas (or light_replicas + heavy_replicas) must add up to at least 1")
        return self

    @property
    def size(self) -> int:
        """Number of replicas of the pool."""
        return sum(self.replicas.values())

    def chain(self, ladder: Sequence[str]) -> tuple[str, ...]:
        """The variants in ``replicas``, in the order of the ladder."""
        return tuple(key for key in ladder if key in self.replicas)

    def check(self, family: FamilyConfig, *, judged: bool = True) -> None:
        """Checks the plan against a family's ladder.

        Args:
            judged: whether judges are needed; emulated workers need none.

        Raises:
            ConfigError: names the key and the remedy.
        """
        ladder, chain = ", ".join(family.keys), self.chain(family.keys)
        judges = chain[:-1]
        for what, keys, known in (
            ("replicas", self.replicas, family.keys),
            ("batch", self.batch, chain),
            ("thresholds", self.thresholds, judges),
        ):
            for key in keys:
                if key not in family.keys:
                    raise ConfigError(f"plan.{what}.{key}: {family.name} has the variants {ladder}")
                if key not in known:
                    reason = "is the last variant of the plan" if key in chain else "has no entry in replicas"
                    raise ConfigError(f"plan.{what}.{key}: {key} {reason}; leave it out")
        if family.keys[-1] not in chain:
            raise ConfigError(f"plan.replicas: {family.keys[-1]}, the last variant, is missing; 0 is allowed")
        for key in judges:
            threshold = self.thresholds.get(key, THRESHOLD)
            if judged and family.variants[key].discriminator is None and 0 < threshold < 1:
                raise ConfigError(
                    f"plan.thresholds.{key} is {threshold:g}, and {key} of {family.name} has no discriminator; "
                    "name one in the family file, or use the threshold 0 (defers nothing) or 1 (defers everything)"
                )

    def plan(self, ladder: Sequence[str], version: int = 1) -> Plan:
        """The configured plan.

        Args:
            ladder: keys of the family's variants, in order, against which the configuration was checked.
        """
        chain = self.chain(ladder)
        return Plan(
            version,
            tuple(Assignment(key, self.batch.get(key, BATCH)) for key in chain for _ in range(self.replicas[key])),
            tuple(self.thresholds.get(key, THRESHOLD) for key in chain[:-1]),
            chain,
        )


class PoolConfig(_Strict):
    """The replicas that hold the models."""

    cpus_per_replica: float = Field(1, ge=0, le=1024)
    gpus_per_replica: float = Field(0, ge=0, le=64)
    resources: dict[str, float] = Field(default_factory=dict)
    emulate: str | None = Field(
        None, description="profile file whose latencies are slept instead of running models; answers are marked"
    )


class ControllerConfig(_Strict):
    """The policy that makes plans, including their rules for dispatching, dropping and answering requests."""

    policy: str = Field(
        "static",
        min_length=1,
        description="static keeps the configured plan; other policies need a profile: a name in "
        "controller/registry.py, or module:Class of your own",
    )


class CacheConfig(_Strict):
    """The approximate cache; off by default."""

    mode: Literal["off", "read", "read-write"] = Field("off", description="default for requests that do not specify it")
    url: str | None = Field(
        None,
        repr=False,
        description="Redis; default: the environment's WEIR_CACHE_URL, or a server that `weir up` starts",
    )
    tls_ca: str | None = Field(None, description="CA certificates for a rediss:// server")
    secret_file: str | None = Field(
        None, description="secret of the tags, older ones below; default: WEIR_CACHE_SECRET"
    )
    budget_mib: int = Field(1024, ge=1, description="budget for states in Redis; see `eviction`")
    selector: str = Field("nirvana", description="name of published thresholds, or a file of `weir cache profile`")
    insert: Literal["misses", "all"] = Field("all", description="store states after misses only, or also after hits")
    candidates: int = Field(4, ge=1, le=64, description="neighbours to choose from")
    eviction: str = Field(
        "weir", description="weir, lcbfu, lfu, lru or fifo (cache/policy/eviction.py), or module:Class of your own"
    )
    encoder: str | None = Field(
        None, description="text model of transformers, words, or module:name of your own; default: the family's own"
    )
    encoder_replicas: int = Field(
        0, ge=0, le=64, description="processes that encode prompts; 0: the cache's own process encodes them"
    )
    predictor: str | None = Field(None, description="file of a match predictor; default: every prompt is looked up")
    levels: str | None = Field(None, description="file of `weir levels fit`; default: one class of prompts")
    shadow: float = Field(
        0,
        ge=0,
        le=0.2,
        description="share of images that an idle service generates again at every level, to check `levels`",
    )
    compression: Literal["none", "zlib", "int8"] = "none"
    fetch_s: float = Field(0.02, gt=0, le=1, description="time limit of Redis on a request's path, seconds")
    lookup_s: float = Field(0.25, gt=0, le=5, description="time limit of a lookup with its encoder, seconds")
    direct: float = Field(
        0, ge=0, le=1, description="hits that save at least this share of the steps skip the light variant"
    )

    @model_validator(mode="after")
    def _a_head_to_check(self) -> CacheConfig:
        if self.shadow and (self.levels is None or self.mode == "off"):
            raise ValueError("shadow needs levels, which it checks, and a mode other than off")
        return self


class StateConfig(_Strict):
    """The Redis in which several load balancers keep what they share: jobs, idempotency keys, answers, images behind
    URLs, quotas, and the operator's controls. Nothing that is evicted by the cache's budget."""

    url: str | None = Field(
        None,
        description="Redis; default: the environment's WEIR_STATE_URL, or the Redis of the cache. One load balancer "
        "without it keeps everything in its memory",
    )
    tls_ca: str | None = Field(None, description="CA certificates for a rediss:// server")
    space: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="prefix of all keys; default: the family's name. Services of one family that share a Redis need "
        "different ones",
    )
    answers_mib: int = Field(256, ge=1, description="budget for the answers of ended jobs in Redis")
    images_mib: int = Field(256, ge=1, description="budget for images behind URLs in Redis")


class RedrawConfig(_Strict):
    """Redraws: heavy images that the discriminator doubts are generated again if there is time; off by default.

    Requests that name a seed or a variant are not redrawn; an idempotency key counts as a seed.
    """

    below: float = Field(0, ge=0, le=1, description="heavy images with a lower confidence are redrawn; 0 redraws none")
    most: int = Field(1, ge=1, le=8, description="largest number of redraws of an image; the best image is the answer")


class KeyConfig(_Strict):
    """An API key's digest, tenant and limits. The key itself is not stored."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="digest of the key; a slower hash is not needed, because a key has 256 random bits",
    )
    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="tenant, which shares cached states")
    priority: Literal["interactive", "batch"] = "interactive"
    images_per_minute: float | None = Field(
        None,
        gt=0,
        description="mean rate; a minute's images may come at once. A larger image, or one of "
        "more steps than the variant's own, counts as the images that take the same work",
    )
    concurrent_images: int | None = Field(None, ge=1, description="largest number of images in flight")
    moderation: Moderation | None = Field(None, description="of its requests; default: that of the service")
    admin: bool = Field(
        False, description="may see and cancel the requests of every key, and change the running service"
    )


class KeysConfig(_Strict):
    """The keys file."""

    keys: tuple[KeyConfig, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> KeysConfig:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return self


class LimitsConfig(_Strict):
    """Limits of a request."""

    body_bytes: int = Field(64 * 1024, ge=1024)
    body_s: float = Field(10, gt=0, le=600, description="time limit for the complete body, seconds")
    image_bytes: int = Field(16 * 2**20, ge=1024, description="of each picture of an edit, as the client sends it")
    image_pixels: int = Field(2**25, ge=1, le=2**26, description="of each picture of an edit, as the client sends it")
    upload_s: float = Field(60, gt=0, le=600, description="time limit for the complete body of an edit, seconds")
    prompt_characters: int = Field(2000, ge=1)
    images: int = Field(4, ge=1, le=10)
    steps: int = Field(100, ge=1, le=1000)
    pixels: int | None = Field(None, ge=1, description="of one image; null: what the family file allows")
    queued: int = Field(256, ge=1, description="images in flight; further requests get 503 with Retry-After")


class HttpConfig(_Strict):
    """Address of the HTTP server, and the origins of web pages that may call it."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 picks a free port")
    allowed_origins: tuple[str, ...] = Field(
        (), description="origins whose web pages may call, such as https://chat.example.com; any allows all"
    )

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """Normalises origins to the form of browsers: in lower case, without a path and without a default port."""
        return tuple("*" if origin in ("any", "*") else _origin(origin) for origin in origins)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")


def _origin(text: str) -> str:
    """Normalises an origin to the form of browsers.

    Raises:
        ValueError: the text is not an origin.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or "@" in text:
        raise ValueError(f"{text!r} is not an origin; write scheme://host or scheme://host:port, without a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    has_port = parts.port is not None and parts.port != {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if has_port else "")


#: Model of an alias for the family's cascade.
CASCADE = "cascade"


class ServiceConfig(_Strict):
    """A service file: what ``weir up`` starts."""

    family: str = Field(description="family file, relative to this file")
    profile: str | None = Field(None, description="profile file of the family on this hardware, relative to this file")
    slo_s: float = Field(gt=0, le=3600, description="seconds from admission to answer")
    plan: PlanConfig
    controller: ControllerConfig = ControllerConfig()
    pool: PoolConfig = PoolConfig()
    cache: CacheConfig = CacheConfig()
    balancers: int = Field(
        1, ge=1, le=64, description="number of load balancers; more than one share their state in Redis"
    )
    state: StateConfig = StateConfig()
    redraw: RedrawConfig = RedrawConfig()
    limits: LimitsConfig = LimitsConfig()
    http: HttpConfig = HttpConfig()
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="further model names, e.g. OpenAI's: name → cascade, a variant or a model",
    )
    prompt_syntax: PromptSyntax = Field(
        "plain",
        description="of requests that name none; weighted: (red:1.3) gives a part of the prompt a weight",
    )
    moderation: Moderation = Field(
        "auto", description="of keys that name none; low: only what filter and checker are surer of; off: nothing"
    )
    prompt_filter: str | None = Field(
        None, description="module:name of your own code that blocks prompts. Default: no prompt is blocked"
    )
    keys_file: str | None = Field(
        None, description="keys file, relative to this file; `weir keys new` writes it. Default: no key is needed"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_pairs(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "pairs" in given:
            raise ValueError(
                "pairs is an obsolete key; list all light variants and the heavy one under variants in one family "
                "file, measure that family with `weir profile`, and leave pairs out"
            )
        return given

    @property
    def controlled(self) -> bool:
        """Whether a controller makes plans."""
        return self.controller.policy != "static"

    @property
    def on_every_node(self) -> bool:
        """Whether load balancers and proxies run on every node. Ray Serve has load balancers behind HAProxy listen on
        ``http.host``, so with a loopback address they are reached on their own node only."""
        return self.balancers > 1 and not self.http.is_local

    @property
    def shared(self) -> bool:
        """Whether the load balancers keep their state in Redis."""
        return self.balancers > 1 or self.state.url is not None

    @model_validator(mode="after")
    def _a_profile_to_plan_with(self) -> ServiceConfig:
        if self.controlled and not (self.profile or self.pool.emulate):
            raise ValueError(
                f"controller.policy {self.controller.policy} needs a profile; create one with `weir profile` and name "
                "it in the key profile"
            )
        return self

    @property
    def drain_s(self) -> float:
        """Time that a stopping replica has to finish its images, seconds."""
        return max(20.0, 2 * self.slo_s)


Model = TypeVar("Model", bound=BaseModel)

#: Types of pydantic's errors about a value that no key takes: it may be a secret under a mistyped key.
_UNQUOTED = frozenset(("missing", "extra_forbidden", "model_type", "model_attributes_type", "dict_type"))


def read_yaml(path: Path | str, model: type[Model], *, quoted: bool = True) -> Model:
    """Reads and validates a YAML file.

    Args:
        quoted: whether errors quote the given values; False for files that may hold secrets.

    Raises:
        ConfigError: names the file, the key or the line, and the accepted values.
    """
    path = Path(path)
    fields = read_mapping(path, quoted=quoted)
    try:
        return _validated(model, fields)
    except ValidationError as error:
        problems = error.errors()
    unknown = [key_name(it["loc"][0]) for it in problems if it["type"] == "extra_forbidden" and len(it["loc"]) == 1]
    if 2 * len(unknown) > len(fields):
        kind = model.__name__.removesuffix("Config").lower()
        raise ConfigError(
            f"{path}: is not a {kind} file, which has no keys {', '.join(unknown)}; its keys are "
            f"{', '.join(model.model_fields)}. `weir check` says what a file is"
        )
    raise ConfigError("\n".join(f"{path}: {_said(problem, model, fields, quoted)}" for problem in problems))


def _said(problem: ErrorDetails, model: type[BaseModel], fields: dict[str, Any], quoted: bool) -> str:
    """The sentence for one of pydantic's errors."""
    loc = problem["loc"]
    if len(loc) > 1 and loc[0] not in fields and loc[1] in fields:
        loc = loc[1:]  # for the short form, the key in the file
    key = ".".join(map(key_name, loc)) or "(whole file)"
    given = problem.get("input")
    show = quoted and problem["type"] not in _UNQUOTED and MAY_HOLD_SECRETS.isdisjoint(loc)
    show = show and not isinstance(given, dict)
    shown = f" (given: {reprlib.repr(given) if isinstance(given, list) else repr(given)})" if show else ""
    remedy = f"; known keys: {', '.join(model.model_fields)}"
    if problem["type"] != "extra_forbidden" or len(loc) > 1:
        remedy = ""
    return without_credentials(f"{key}: {problem['msg']}{shown}") + remedy


def _validated(model: type[Model], fields: dict[str, Any]) -> Model:
    """Validates fields, and accepts whole numbers written as 1e3 or 0x10.

    Raises:
        ValidationError: the fields are invalid.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        numbers = {
            problem["loc"]: number
            for problem in error.errors()
            if problem["type"] == "int_parsing" and (number := whole_number(problem["input"])) is not None
        }
        if not numbers:
            raise
    for (*parents, last), number in numbers.items():
        container: Any = fields
        for step in parents:
            container = container[step]
        container[last] = number
    return model.model_validate(fields)


def resolve(reference: str, relative_to: Path) -> str:
    """Resolves a path relative to its configuration file; a reference that is not a local path is a hub name."""
    candidate = (relative_to / reference).resolve()
    # Path.exists fails at a name that is too long.
    if os.path.exists(candidate) or reference.startswith((".", "/")):
        return str(candidate)
    return reference


#: Keys of a variant that may be local paths.
_VARIANT_PATHS = ("pipeline", "checkpoint", "unet", "inpainting")


def load_family(path: Path | str) -> FamilyConfig:
    """Reads a family file and makes its local paths absolute.

    Raises:
        ConfigError: the file is invalid (:func:`read_yaml`), or a local folder does not exist.
    """
    path = Path(path)
    family = read_yaml(path, FamilyConfig)
    here = path.resolve().parent

    def absolute(key: str, reference: str | None) -> str | None:
        if reference is None:
            return None
        found = resolve(reference, here)
        if found.startswith("/") and not os.path.exists(found):
            raise ConfigError(f"{path}: {key}: there is no file or folder {found}")
        return found

    variants = {}
    for name, variant in family.variants.items():
        files = {k: absolute(f"{name}.{k}", getattr(variant, k)) for k in _VARIANT_PATHS}
        if variant.discriminator_folder is not None:
            files["discriminator"] = absolute(f"{name}.discriminator", variant.discriminator_folder)
        variants[name] = variant.model_copy(update=files)
    shared = {k: absolute(k, getattr(family, k)) for k in ("pipeline", "checkpoint", "vae", "clip")}
    if family.safety_checker is not None and not is_own(family.safety_checker):
        shared["safety_checker"] = absolute("safety_checker", family.safety_checker)
    words = {word: absolute(f"textual_inversions.{word}", file) for word, file in family.textual_inversions.items()}
    adapters = {
        name: it if it.file is None else it.model_copy(update={"file": str((here / it.file).resolve())})
        for name, it in family.adapters.items()
    }
    for name, adapter in adapters.items():
        absolute(f"adapters.{name}.file", adapter.file)
    changed = {"variants": variants, "textual_inversions": words, "adapters": adapters, **shared}
    return family.model_copy(update=changed)


def load_service(path: Path | str) -> tuple[ServiceConfig, FamilyConfig]:
    """Reads a service file and its family file, and makes their paths absolute.

    Raises:
        ConfigError: names the file and the key.
    """
    path = Path(path)
    service = read_yaml(path, ServiceConfig)
    here = path.resolve().parent
    family_path = here / service.family
    if not os.path.exists(family_path):
        raise ConfigError(f"{path}: family: there is no file {family_path}")
    update: dict[str, object] = {"family": str(family_path.resolve())}
    if service.profile is not None:
        update["profile"] = str((here / service.profile).resolve())
        if not os.path.exists(str(update["profile"])):
            raise ConfigError(f"{path}: profile: there is no file {update['profile']}; create it with `weir profile`")
    if service.pool.emulate is not None:
        emulate = (here / service.pool.emulate).resolve()
        if not os.path.exists(emulate):
            raise ConfigError(f"{path}: pool.emulate: there is no file {emulate}")
        update["pool"] = service.pool.model_copy(update={"emulate": str(emulate)})
    files = ("selector", "encoder", "predictor", "levels", "secret_file", "tls_ca")
    given = {key: value for key in files if (value := getattr(service.cache, key)) is not None}
    update["cache"] = service.cache.model_copy(update={key: resolve(value, here) for key, value in given.items()})
    if service.keys_file is not None:
        update["keys_file"] = str((here / service.keys_file).resolve())
    family = load_family(family_path)
    try:
        service.plan.check(family, judged=service.pool.emulate is None)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None
    if service.cache.levels is not None and len(family.variants) > 2:
        raise ConfigError(
            f"{path}: cache.levels: levels are fitted on one light variant, and {family.name} has "
            f"{len(family.variants) - 1}; use a family with two variants, or leave it out"
        )
    targets = {CASCADE: family.name} | {key: f"{family.name}/{key}" for key in family.keys}
    targets |= {name: name for name in family.model_names}
    for alias, model in service.aliases.items():
        if model not in targets or alias in family.model_names or not 1 <= len(alias) <= 64:
            raise ConfigError(
                f"{path}: aliases.{alias}: {model}: an alias is a new name of 1 to 64 characters for {CASCADE} or for "
                f"one of the models {', '.join(family.model_names)}"
            )
    update["aliases"] = {alias: targets[model] for alias, model in service.aliases.items()}
    return service.model_copy(update=update), family


def load_keys(path: Path | str) -> KeysConfig:
    """Reads a keys file. Errors do not quote its content, because it may contain a key by mistake.

    Raises:
        ConfigError: names the file and the entry.
    """
    return read_yaml(path, KeysConfig, quoted=False)

"""The configuration: one tree of models, YAML in, every mistake answered with its key, the range and the remedy.

A *service* file (``deploy/configs/*.yaml``) says what ``weir up`` starts; it names a *family* file
(``deploy/families/*.yaml``), which says what the variants are and where their weights lie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from weir.errors import ConfigError
from weir.plan import HEAVY, LIGHT, Assignment, Plan
from weir.yaml_files import read_mapping, whole_number

Scheduler = Literal["ddim", "euler", "euler-trailing"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


#: As a variant's discriminator: no folder, but the score of the family's CLIP.
CLIP_SCORE = "clip"
#: A variant's key in the ladder: part of model names, of metric labels and of the path in an answer.
KEY = re.compile(r"[a-z][a-z0-9-]*")
#: Of a plan that does not say.
BATCH, THRESHOLD = 4, 0.5


class VariantConfig(_Strict):
    """One variant of a family.

    The weights are a whole diffusers pipeline (``pipeline``), or the family's shared parts with another UNet: a
    diffusers folder or a single safetensors file, as SDXL-Lightning ships (``unet``). Either is a local path or the
    name of a hub repository; ``unet_file`` picks one file of it.
    """

    name: str = Field(description="shown in answers and metrics, e.g. sdxl-lightning-4step")
    pipeline: str | None = None
    revision: str | None = None
    unet: str | None = None
    unet_file: str | None = None
    scheduler: Scheduler
    steps: int = Field(ge=1, le=200)
    guidance: float = Field(ge=0, le=30, description="classifier-free guidance scale; 0 or 1 turns it off")
    discriminator: str | None = Field(
        None,
        description="judges the variant's images: folder of a discriminator, or clip: the score of the family's clip; "
        "needed where a cascade goes on from the variant",
    )

    @model_validator(mode="after")
    def _one_source(self) -> VariantConfig:
        if self.pipeline and (self.unet or self.unet_file):
            raise ValueError("give either pipeline or unet (with unet_file where needed), not both")
        if self.unet_file and not self.unet:
            raise ValueError("unet_file needs unet: the repository or folder that holds the file")
        return self


class FamilyConfig(_Strict):
    """A ladder of variants that can stand in for one another, from the fastest to the best.

    A file gives ``variants``, or for a ladder of two ``light``, ``heavy`` and the light variant's ``discriminator``.
    """

    name: str
    pipeline: str = Field(description="diffusers pipeline with the shared parts: local folder or hub repository")
    revision: str | None = None
    weights: Literal["fp16"] | None = Field(None, description="which file set of the repository to load")
    size: int = Field(ge=16, le=4096, description="side of the square images, pixels")
    sizes: tuple[int, ...] = Field((), description="other sides that requests may ask for, pixels")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    compile: bool = Field(False, description="torch.compile the denoisers: minutes of warm-up for faster steps on CUDA")
    variants: dict[str, VariantConfig] = Field(description="by key, in order; or light, heavy and discriminator")
    clip: str | None = Field(None, description="CLIP for similarity and CLIP score: local folder or hub repository")
    clip_revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """``light``, ``heavy`` and ``discriminator`` as a ladder of two."""
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
    def _a_ladder(self) -> FamilyConfig:
        if len(self.variants) < 2:
            raise ValueError("variants: a family has at least two, from the fastest to the best")
        for key, variant in self.variants.items():
            if not KEY.fullmatch(key) or key == "cache" or key.endswith("-deadline"):
                raise ValueError(
                    f"variants: {key!r} is no key; it must be lower-case letters, digits and hyphens, begin with a "
                    "letter, and be neither cache nor end in -deadline"
                )
            if variant.discriminator == CLIP_SCORE and self.clip is None:
                raise ValueError(f"{key}: its discriminator is clip, and no clip is named")
        last = self.keys[-1]
        if self.variants[last].discriminator is not None:
            raise ValueError(f"{last}: nothing follows the last variant; leave out its discriminator")
        names = [variant.name for variant in self.variants.values()]
        if len(set(names)) < len(names):
            raise ValueError(f"variants have the names {', '.join(names)}; each needs one of its own")
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """What requests may name as their model: the cascade, and each variant on its own."""
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

    @property
    def discriminator(self) -> str | None:
        """The first variant's. It also judges images of the last one, where somebody asks for that."""
        return self.light.discriminator

    @property
    def allowed_sizes(self) -> tuple[int, ...]:
        return (self.size, *self.sizes)


class PlanConfig(_Strict):
    """The plan to start with, and to stay with under the policy ``static``.

    Its chain is every variant that ``replicas`` names. A file for a ladder of light and heavy may give
    ``light_replicas``, ``heavy_replicas``, ``light_batch``, ``heavy_batch`` and ``threshold`` instead.
    """

    replicas: dict[str, Annotated[int, Field(ge=0)]] = Field(description="by variant; the last one is always named")
    batch: dict[str, Annotated[int, Field(ge=1, le=256)]] = Field({}, description="largest batch by variant; else 4")
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="by variant of the chain but the last; else 0.5"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """The keys for a ladder of two in the general form."""
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
        """Replicas of the pool."""
        return sum(self.replicas.values())

    def chain(self, ladder: Sequence[str]) -> tuple[str, ...]:
        """The variants in use, in the order of the ladder."""
        return tuple(key for key in ladder if key in self.replicas)

    def check(self, family: FamilyConfig, *, judged: bool = True) -> None:
        """Checks the plan against the ladder that it is for.

        Args:
            judged: whether the judges matter: emulated workers need none.

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
                    f"plan.thresholds.{key} is {threshold:g}, and {key} of {family.name} has no discriminator to judge "
                    "its images; name one in the family file, or use the threshold 0 (defers nothing) or 1 (everything)"
                )

    def plan(self, ladder: Sequence[str], version: int = 1) -> Plan:
        """The plan itself.

        Args:
            ladder: keys of the family's variants, in order; the configuration was checked against them.
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

    cpus_per_replica: float = Field(1, ge=0)
    gpus_per_replica: float = Field(0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)
    emulate: str | None = Field(
        None, description="profile file: sleep its latencies instead of running models (the answer says so)"
    )


class ControllerConfig(_Strict):
    """Who decides plans, and with them the rules by which requests are sent, dropped and answered."""

    policy: str = Field(
        "static",
        min_length=1,
        description="static keeps the configured plan; every other one needs a profile: a name that `weir compare` "
        "knows (controller/registry.py), or module:Class of your own",
    )


class CacheConfig(_Strict):
    """The approximate cache in front of the cascade; off unless switched on."""

    mode: Literal["off", "read", "read-write"] = Field("off", description="what requests do that do not say themselves")
    url: str | None = Field(
        None, description="Redis; else the environment's WEIR_CACHE_URL; else `weir up` starts a server on this machine"
    )
    tls_ca: str | None = Field(None, description="certificates that a rediss:// server is checked against")
    secret_file: str | None = Field(None, description="the tags' secret, older ones below it; else WEIR_CACHE_SECRET")
    budget_mib: int = Field(1024, ge=1, description="of states in Redis; what leaves is decided by `eviction`")
    selector: str = Field("nirvana", description="published thresholds by name, or a file of `weir cache profile`")
    insert: Literal["misses", "all"] = Field("all", description="keep states after misses only, or after hits too")
    candidates: int = Field(4, ge=1, le=64, description="neighbours to choose from")
    eviction: Literal["fifo", "lru", "lfu", "lcbfu", "weir"] = "weir"
    encoder: str | None = Field(None, description="text model of transformers, or words; else the family's own")
    predictor: str | None = Field(None, description="file of a match predictor; else every prompt is looked up")
    levels: str | None = Field(None, description="file of `weir levels fit`; else prompts are not told apart")
    shadow: float = Field(
        0,
        ge=0,
        le=0.2,
        description="share of images that an idle service may draw again at every level, to see whether `levels` holds",
    )
    compression: Literal["none", "zlib", "int8"] = "none"
    fetch_s: float = Field(0.02, gt=0, le=1, description="longest wait for Redis on a request's path")
    lookup_s: float = Field(0.25, gt=0, le=5, description="longest wait for a lookup, encoder included")
    direct: float = Field(
        0, ge=0, le=1, description="hits that save at least this share of the steps skip the light variant"
    )

    @model_validator(mode="after")
    def _a_head_to_check(self) -> CacheConfig:
        if self.shadow and (self.levels is None or self.mode == "off"):
            raise ValueError("shadow needs levels, the file that it checks, and a mode other than off")
        return self


class RedrawConfig(_Strict):
    """Heavy images that the discriminator doubts are drawn again from other noise, where time is left; off by default.

    Requests that name a seed or a variant get what they name; an idempotency key names a seed.
    """

    below: float = Field(0, ge=0, le=1, description="a heavy image of a lower confidence is doubted; 0 doubts none")
    most: int = Field(1, ge=1, le=8, description="times that an image is drawn again; the best one is the answer")


class KeyConfig(_Strict):
    """One key of the API and what its holder may do. The key itself is nowhere, only its digest."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="of the whole key; a key has 256 random bits, so nothing slower is needed to hide it",
    )
    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="whose cached states it may reuse")
    priority: Literal["interactive", "batch"] = "interactive"
    images_per_minute: float | None = Field(None, gt=0, description="as a mean; a minute's worth may come at once")
    concurrent_images: int | None = Field(None, ge=1, description="images asked for and not answered yet")
    admin: bool = Field(False, description="may see and cancel the requests of every key")


class KeysConfig(_Strict):
    """The keys file: who may call."""

    keys: tuple[KeyConfig, ...] = ()

    @model_validator(mode="after")
    def _told_apart(self) -> KeysConfig:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return self


class LimitsConfig(_Strict):
    """What one request may ask for."""

    body_bytes: int = Field(64 * 1024, ge=1024)
    body_s: float = Field(10, gt=0, le=600, description="longest wait for the whole body, seconds")
    prompt_characters: int = Field(2000, ge=1)
    images: int = Field(4, ge=1, le=10)
    steps: int = Field(100, ge=1, le=1000)
    queued: int = Field(256, ge=1, description="images in flight; beyond it requests get 503 with Retry-After")


class HttpConfig(_Strict):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 picks a free port")
    allowed_origins: tuple[str, ...] = Field(
        (), description="whose web pages may call from a browser, such as https://chat.example.com; any: everybody's"
    )

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """As browsers send them: in lower case, without a path, and without the port that goes without saying."""
        return tuple("*" if origin in ("any", "*") else _origin(origin) for origin in origins)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")


def _origin(text: str) -> str:
    """An origin as browsers send it.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or "@" in text:
        raise ValueError(f"{text!r} is no origin; write scheme://host or scheme://host:port, without a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    told = parts.port is not None and parts.port != {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if told else "")


#: As the model of an alias: the family itself, whatever its name is.
CASCADE = "cascade"


class ServiceConfig(_Strict):
    """What ``weir up`` starts."""

    family: str = Field(description="family file, relative to this file")
    profile: str | None = Field(None, description="profile file of the family on this hardware, relative to this file")
    slo_s: float = Field(gt=0, le=3600, description="seconds from admission to answer")
    plan: PlanConfig
    controller: ControllerConfig = ControllerConfig()
    pool: PoolConfig = PoolConfig()
    cache: CacheConfig = CacheConfig()
    redraw: RedrawConfig = RedrawConfig()
    limits: LimitsConfig = LimitsConfig()
    http: HttpConfig = HttpConfig()
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="further names of models, as OpenAI's: name → cascade, a variant or a model",
    )
    keys_file: str | None = Field(
        None, description="who may call, relative to this file; `weir keys new` writes it. Without one everybody may"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_pairs(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "pairs" in given:
            raise ValueError(
                "pairs is of an older form; list all light variants and the heavy one under variants in one family "
                "file, measure that family with `weir profile`, and leave pairs out"
            )
        return given

    @property
    def controlled(self) -> bool:
        """Whether a controller makes the plans."""
        return self.controller.policy != "static"

    @model_validator(mode="after")
    def _a_profile_to_plan_with(self) -> ServiceConfig:
        if self.controlled and not (self.profile or self.pool.emulate):
            raise ValueError(
                f"controller.policy {self.controller.policy} needs a profile; make one with `weir profile` and name it "
                "in the key profile"
            )
        return self

    @property
    def drain_s(self) -> float:
        """How long a replica that is told to stop may go on with what it has begun."""
        return max(20.0, 2 * self.slo_s)


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path | str, model: type[Model], *, quoted: bool = True) -> Model:
    """Reads and checks one file.

    Args:
        quoted: complaints show what was given; False for files where that may be a secret.

    Raises:
        ConfigError: names the file, and the key or the line, and what is allowed there.
    """
    path = Path(path)
    fields = read_mapping(path, quoted=quoted)
    try:
        return _validated(model, fields)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        lines = []
        for problem in error.errors():
            loc = problem["loc"]
            if len(loc) > 1 and loc[0] not in fields and loc[1] in fields:
                loc = loc[1:]  # of a shorthand, the key that is in the file
            key = ".".join(str(k) for k in loc) or "(whole file)"
            remedy = f"; known keys: {known}" if problem["type"] == "extra_forbidden" and "." not in key else ""
            given = problem.get("input")
            told = quoted and not isinstance(given, dict) and problem["type"] != "missing"
            shown = f" (given: {given!r})" if told else ""
            lines.append(f"{path}: {key}: {problem['msg']}{shown}{remedy}")
        raise ConfigError("\n".join(lines)) from None


def _validated(model: type[Model], fields: dict[str, Any]) -> Model:
    """The model of these fields, whole numbers written as 1e3 or 0x10 among them.

    Raises:
        ValidationError: as pydantic says it.
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
    for (*way, last), number in numbers.items():
        container: Any = fields
        for step in way:
            container = container[step]
        container[last] = number
    return model.model_validate(fields)


def resolve(reference: str, relative_to: Path) -> str:
    """A path in a configuration is relative to its file; anything that is no local path is a hub name and stays."""
    candidate = (relative_to / reference).resolve()
    if candidate.exists() or reference.startswith((".", "/")):
        return str(candidate)
    return reference


def load_family(path: Path | str) -> FamilyConfig:
    """Reads a family file; local folders in it become absolute.

    Raises:
        ConfigError: as :func:`read_yaml`, or a local folder that does not exist.
    """
    path = Path(path)
    family = read_yaml(path, FamilyConfig)
    here = path.resolve().parent

    def fixed(key: str, reference: str | None) -> str | None:
        if reference is None:
            return None
        found = resolve(reference, here)
        if found.startswith("/") and not Path(found).exists():
            raise ConfigError(f"{path}: {key}: there is no file or folder {found}")
        return found

    variants = {}
    for name, variant in family.variants.items():
        files = {k: fixed(f"{name}.{k}", getattr(variant, k)) for k in ("pipeline", "unet", "discriminator")}
        if variant.discriminator == CLIP_SCORE:
            files["discriminator"] = CLIP_SCORE
        variants[name] = variant.model_copy(update=files)
    shared = {k: fixed(k, getattr(family, k)) for k in ("pipeline", "clip")}
    return family.model_copy(update={"variants": variants, **shared})


def load_service(path: Path | str) -> tuple[ServiceConfig, FamilyConfig]:
    """Reads a service file and the family it names; paths in both become absolute.

    Raises:
        ConfigError: names the file and the key.
    """
    path = Path(path)
    service = read_yaml(path, ServiceConfig)
    here = path.resolve().parent
    family_path = here / service.family
    if not family_path.exists():
        raise ConfigError(f"{path}: family: there is no file {family_path}")
    update: dict[str, object] = {"family": str(family_path.resolve())}
    if service.profile is not None:
        update["profile"] = str((here / service.profile).resolve())
        if not Path(str(update["profile"])).exists():
            raise ConfigError(f"{path}: profile: there is no file {update['profile']}; make it with `weir profile`")
    if service.pool.emulate is not None:
        emulate = (here / service.pool.emulate).resolve()
        if not emulate.exists():
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
            f"{len(family.variants) - 1}; name a family of two, or leave it out"
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
    """Reads a keys file; no complaint quotes it, for somebody may have put a key itself there.

    Raises:
        ConfigError: names the file and the entry.
    """
    return read_yaml(path, KeysConfig, quoted=False)

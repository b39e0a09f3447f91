"""The nouns that every package shares. Plain data: no Ray, torch, Redis or clock in here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from weir.adapters import AdapterUse
from weir.moderation import Moderation
from weir.prompts import PromptSyntax
from weir.samplers import Scheduler

#: Share of the deadline that is kept for what no profile knows: hops, encoding, jitter, a slow batch.
MARGIN = 0.02
#: Smallest safety margin before the deadline: the response still has to reach the client.
LEAST_MARGIN_S = 0.05


def margin_s(slo_s: float) -> float:
    """Seconds before the deadline at which an answer has to leave; waiting for a better image ends there."""
    return max(LEAST_MARGIN_S, MARGIN * slo_s)


class ImageSize(NamedTuple):
    """Width and height of an image, pixels; written ``WIDTHxHEIGHT``."""

    width: int
    height: int

    @classmethod
    def of(cls, given: int | str) -> ImageSize:
        """The size that is written so, or the square with that side.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(given, int) and not isinstance(given, bool):
            return cls(given, given)
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(given))
        if match is None:
            raise ValueError(f"{given!r} is not a size; write WIDTHxHEIGHT, such as 1152x896")
        return cls(int(match[1]), int(match[2]))

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Resume:
    """A stored state of an earlier, similar prompt to resume denoising from.

    Attributes:
        key: where the state lies. A state that is missing or does not fit costs speed only: the run then starts from
            noise, and its result says so.
        step: K, the denoising step that the state enters; the steps before it do not run.
        stride: runs every n-th of the remaining steps.
        min_confidence: the discriminator's least confidence for which the resumed image is the answer; above 0 the
            discriminator judges it too, and an image below it is generated once more from noise.
    """

    key: str
    step: int
    stride: int = 1
    min_confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Another variant's finished latent to start from, re-noised to the level of one step.

    Attributes:
        latent: :meth:`weir.states.State.to_bytes`.
        step: the step whose noise level it is brought to, and at which the run starts; at least 1.
    """

    latent: bytes
    step: int


def steps_of_edit(steps: int, strength: float) -> int:
    """Number of the last steps of a run of ``steps`` steps that an edit runs: ⌊steps · strength⌋ as in diffusers, and
    at least one."""
    return max(1, int(steps * strength))


@dataclass(frozen=True, slots=True)
class Edit:
    """A picture to start from, in place of noise alone. Both pictures have the size of the request.

    Attributes:
        image: PNG, RGB.
        mask: PNG, greyscale: what is white is generated, and what is black stays as it is; None: nothing has to stay.
        strength: share of the steps that run, above 0 and at most 1; the picture is brought to the noise level of the
            first of them.
    """

    image: bytes = field(repr=False)
    mask: bytes | None = field(repr=False)
    strength: float

    @property
    def size_bytes(self) -> int:
        """Size of both pictures."""
        return len(self.image) + len(self.mask or b"")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a client sets instead of the last variant's own values; None keeps them."""

    steps: int | None = None
    guidance: float | None = None
    sampler: Scheduler | None = None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image for a worker. Everything random is fixed here, so that a retry elsewhere gives the same image.

    Attributes:
        id: unique among all requests ever.
        deadline: time by which the answer has to be ready, in seconds of the monotonic clock of the process that has
            the request; workers serve the most urgent first. The wire has the time that is left, because every host has
            a clock of its own.
        prompt_syntax: of the prompt and the negative prompt.
        overrides: of the last variant of the chain.
        adapters: LoRA adapters of every variant, each name once.
        resume, warm_start: where the run starts; None, None: from noise. A resume that fails falls back to the warm
            start, and then to noise.
        edit: the picture to start from; neither of the two above goes with it.
        capture: where the states that enter the family's capture steps are kept: the cache partition of the request
            (tenant, model and settings); None keeps none. They are stored under :func:`weir.states.state_key`.
        tenant: whose request it is; what a worker remembers of it helps no other tenant.
        low_priority: lets all other requests go first.
        judge: the discriminator also looks at an image of the last variant.
        moderation: how strictly the image is checked before anybody sees it.
        previews: pictures of the unfinished image to send on the way (:meth:`workers.replica.Worker.stream`).
        keep_latent: sends the finished latent back with the image, for a warm start of another variant.
        request_id: id of the client's request, for logs and traces.
        traceparent: the span that asks for the image (:func:`weir.tracing.traceparent`); "" without traces.
    """

    id: str
    prompt: str
    seed: int
    size: ImageSize
    deadline: float
    negative_prompt: str = ""
    prompt_syntax: PromptSyntax = "plain"
    overrides: Overrides = Overrides()
    adapters: tuple[AdapterUse, ...] = ()
    resume: Resume | None = None
    warm_start: WarmStart | None = None
    edit: Edit | None = None
    capture: str | None = None
    tenant: str = ""
    low_priority: bool = False
    judge: bool = False
    moderation: Moderation = "off"
    previews: int = 0
    keep_latent: bool = False
    request_id: str = ""
    traceparent: str = ""

    def to_dict(self, now: float) -> dict[str, Any]:
        """Plain data for the wire; :meth:`from_dict` reads it back. ``left_s`` takes the place of the deadline.

        Args:
            now: time of the clock of :attr:`deadline`.
        """
        fields = asdict(self)
        fields["left_s"] = fields.pop("deadline") - now
        fields["size"] = str(self.size)
        return fields

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], now: float) -> ImageRequest:
        """Reads what :meth:`to_dict` wrote, in a process whose monotonic clock shows ``now``.

        Raises:
            TypeError, ValueError: a field is unknown, missing or of another type.
        """
        for name in ("left_s", "size"):
            if name not in given:
                raise TypeError(f"{name} is missing")
        fields = dict(given)
        resume, warm, edit = given.get("resume"), given.get("warm_start"), given.get("edit")
        converted = {
            "size": ImageSize.of(fields["size"]),
            "deadline": now + float(fields.pop("left_s")),
            "overrides": Overrides(**given.get("overrides", {})),
            "adapters": tuple(AdapterUse.from_dict(it) for it in given.get("adapters", ())),
            "resume": None if resume is None else Resume(**resume),
            "warm_start": None if warm is None else WarmStart(**warm),
            "edit": None if edit is None else Edit(**edit),
        }
        return cls(**{**fields, **converted})


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What a worker made of one :class:`ImageRequest`.

    Attributes:
        image: the encoded picture (PNG), or b"" when ``error`` is set.
        confidence: the discriminator's confidence in the image, 0…1; None when the image was not judged.
        steps: denoising steps that ran.
        queue_s, compute_s: seconds in the worker's queue, and from its first step to the finished picture.
        device_s: seconds of ``compute_s`` in which the device worked on its batch; the rest went to other sizes or
            variants.
        batch_size: images that shared the denoiser's calls with it, itself included; the mean over its steps, rounded.
        error: None, or (code, message) when this one request failed; the rest of its batch is untouched.
        emulated: no model ran; the latency was slept and the picture is a placeholder.
        replica: who generated it, as a request router names it.
        queued: requests that waited there when this answer left, so that a dispatcher can correct its estimate.
        left_together: images that were finished at the same step of the same replica, itself included.
        resumed_at: the first step that ran, of a whole run; above 0 after a resume, a warm start or an edit.
        captured: the steps whose entering states are now in the store.
        latent: the finished latent, if the request asked to keep it (:meth:`weir.states.State.to_bytes`).
        fetch_s: seconds that the worker waited for the state to resume from; None: it asked for none.
        seen: the discriminator's features of the picture, for later prompts, beside states that were captured.
        refused: the worker had the state to resume from, and it did not fit; never for one that did not come in time.
        unused_tokens, unused_negative_tokens: tokens at the end of the prompt and of the negative prompt that did not
            fit a text encoder and were left out.
    """

    id: str
    image: bytes
    confidence: float | None
    steps: int
    queue_s: float
    compute_s: float
    device_s: float
    batch_size: int
    plan_version: int
    error: tuple[str, str] | None = None
    emulated: bool = False
    replica: str = ""
    queued: int = 0
    left_together: int = 0
    resumed_at: int = 0
    captured: tuple[int, ...] = ()
    latent: bytes | None = None
    fetch_s: float | None = None
    seen: bytes | None = None
    refused: bool = False
    unused_tokens: int = 0
    unused_negative_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the wire; :meth:`from_dict` reads it back."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ImageResult:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            TypeError: a field is unknown or missing.
        """
        return cls(**given)


class CacheReport(NamedTuple):
    """What the approximate cache is told at the end of a request that it looked up.

    Attributes:
        name: the name of the lookup.
        resumed_at: the step that its run began at.
        captured: the K whose states the worker stores.
        sought: K of the state that the run was to resume from; 0: none.
        seen: the discriminator's features of its image, float16.
        refused: the worker read the state, and it did not fit the worker's model.
        request_id: id of the client's request, for the log.
    """

    name: str
    resumed_at: int = 0
    captured: tuple[int, ...] = ()
    sought: int = 0
    seen: bytes | None = None
    refused: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """What the approximate cache has for a request.

    Attributes:
        partition: where states of this request belong; "" without a cache.
        similarity: cosine to the nearest cached prompt; None where none was looked for.
        entry: id of the cached prompt that ``resume`` or ``stored`` belong to.
        resume: the state that the cache's selector chose; None is a miss.
        stored: (K, key) of every stored state of the nearest prompt, ascending, whatever the selector says; for
            policies that choose K themselves.
        capture: whether the states of a run from noise are worth keeping.
        prompt_class: predicted for the prompt (``weir/prompt_levels.py``), from 0, the hardest; None without a
            classifier.
    """

    partition: str = ""
    similarity: float | None = None
    entry: str | None = None
    resume: Resume | None = None
    stored: tuple[tuple[int, str], ...] = ()
    capture: bool = False
    prompt_class: int | None = None

    def steps_left(self, steps: int) -> int:
        """Steps that run, of a run that has ``steps`` from noise."""
        return steps if self.resume is None else (steps - self.resume.step) // self.resume.stride

    def at(self, k: int) -> Resume | None:
        """The nearest prompt's stored state at K, or at the largest step below it; None where there is none."""
        found = [it for it in self.stored if 0 < it[0] <= k]
        return Resume(key=found[-1][1], step=found[-1][0]) if found else None

    def saved(self, steps: int) -> float:
        """Share of the steps that the resume saves, 0…1."""
        return (steps - self.steps_left(steps)) / steps

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the wire; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> CacheLookup:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            TypeError: a field is unknown or missing.
        """
        resume = given.get("resume")
        return cls(
            **{**given, "resume": None if resume is None else Resume(**resume), "stored": tuple(given["stored"])}
        )


#: No cache was asked.
NO_LOOKUP = CacheLookup()


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Measured seconds per batch of one variant on one type of device, by batch size (ascending)."""

    batch_sizes: tuple[int, ...]
    latency_s: tuple[float, ...]

    def at(self, batch_size: int) -> float:
        """Seconds of a batch; linear between the measured sizes and beyond the last one."""
        sizes, seconds = self.batch_sizes, self.latency_s
        if batch_size <= sizes[0]:
            return seconds[0]
        for (b0, s0), (b1, s1) in pairwise(zip(sizes, seconds, strict=True)):
            if batch_size <= b1:
                return s0 + (s1 - s0) * (batch_size - b0) / (b1 - b0)
        if len(sizes) == 1:
            return seconds[0] * batch_size / sizes[0]
        slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        return seconds[-1] + slope * (batch_size - sizes[-1])


@dataclass(frozen=True, slots=True)
class DeferralCurve:
    """Share of requests whose confidence lies below each threshold, from measured single-image confidences."""

    thresholds: tuple[float, ...]
    shares: tuple[float, ...]

    def at(self, threshold: float) -> float:
        """Linear interpolation of the share deferred at ``threshold``."""
        pairs = list(zip(self.thresholds, self.shares, strict=True))
        if threshold <= pairs[0][0]:
            return pairs[0][1]
        for (t0, f0), (t1, f1) in pairwise(pairs):
            if threshold <= t1:
                return f0 + (f1 - f0) * (threshold - t0) / (t1 - t0)
        return pairs[-1][1]

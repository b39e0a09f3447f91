"""The nouns that every room of the house shares. Plain data: no Ray, torch, Redis or clock in here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from weir.errors import PlanError

#: Of the deadline, what is kept for what no profile knows: hops, encoding, jitter, a slow batch.
MARGIN = 0.02
#: The least of it: the way to the client takes its time however short the deadline is.
LEAST_MARGIN_S = 0.05


def margin_s(slo_s: float) -> float:
    """Seconds before the deadline at which an answer has to leave: waiting for a better image ends there."""
    return max(LEAST_MARGIN_S, MARGIN * slo_s)


class Role(StrEnum):
    """What a replica of the pool is for. Both variants are resident; the plan gives every rank one role."""

    LIGHT = "light"
    HEAVY = "heavy"


class Path(StrEnum):
    """The way a request went, as the answer says it."""

    LIGHT = "light"  #: the discriminator found the light image good enough
    LIGHT_DEADLINE = "light-deadline"  #: deferred, but the heavy image could not make the deadline
    HEAVY = "heavy"  #: the heavy variant drew the image
    CACHE = "cache"  #: the heavy variant went on from a stored state of a similar prompt


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One admitted image. Everything random is fixed here, so that a retry on another replica gives the same image.

    Attributes:
        id: unique among all requests ever.
        steps, guidance: overrides for the heavy variant; None means what the family says.
        deadline: unix time, seconds, by which the answer has to be ready.
        resume_key, resume_step: the stored state to go on from, and the step that it enters (0: from noise). A state
            that is missing or unfit costs speed only: the request then runs from step 0, and the result says so.
        resume_stride: go on with every so-many-th of the steps that are left; what it leaves out is saved too.
        accept: the least confidence for which the picture of a resumed run is the answer; above 0 the discriminator
            judges a heavy image too.
        capture: keep the states that enter the family's capture steps; they are stored under the request's id
            (:func:`weir.states.state_key`).
        cache_partition: whose requests may reuse what is captured, and for which model and settings (``cache/``).
        tenant: whose it is; what a worker remembers of it helps no other tenant.
        light: name of the light variant, where the service holds several; None: the family's own.
        patient: it lets others go first.
        judge: the discriminator looks at the image also where the heavy variant draws it.
        previews: pictures of what is becoming, to be sent on the way (:meth:`workers.replica.Worker.stream`).
        keep_latent: send the finished latent back with the image, for a warm start of the other variant.
        warm_start, warm_start_step: the other variant's finished latent (:meth:`weir.states.State.to_bytes`), and the
            step to go on from after re-noising it to that step's level (0: no warm start).
    """

    id: str
    prompt: str
    seed: int
    width: int
    height: int
    deadline: float
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    resume_key: str | None = None
    resume_step: int = 0
    resume_stride: int = 1
    accept: float = 0.0
    capture: bool = False
    cache_partition: str = ""
    tenant: str = ""
    light: str | None = None
    patient: bool = False
    judge: bool = False
    previews: int = 0
    keep_latent: bool = False
    warm_start: bytes | None = None
    warm_start_step: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ImageRequest:
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What a worker made of one :class:`ImageRequest`.

    Attributes:
        image: the encoded picture (PNG), or b"" when ``error`` is set.
        confidence: the discriminator's confidence in the image, 0…1; None for a heavy one that it was not to judge.
        queue_s, compute_s: seconds in the worker's queue, and from its first step to the finished picture.
        error: None, or (code, message) when this one request failed; the rest of its batch is untouched.
        emulated: no model ran; the latency was slept and the picture is a placeholder.
        replica: who drew it, as a request router names it.
        queued: requests that waited there when this answer left, so that a dispatcher can correct its estimate.
        steps: denoising steps that ran; those before ``resumed_at`` did not.
        batch_size: images that shared the denoiser's calls with it, itself included; the mean over its steps, rounded.
        left_together: images that were finished at the same step of the same replica, itself included.
        resumed_at: the first step that ran, of a whole run; above 0 after a resume or a warm start.
        captured: the steps whose entering states are now in the store.
        latent: the finished latent, if the request asked to keep it (:meth:`weir.states.State.to_bytes`).
        fetch_s: seconds that the worker waited for the state to resume from; None: it asked for none.
        seen: what the discriminator saw in the picture, for later prompts, beside states that were captured.
        refused: the worker had the state to resume from, and it did not fit; never for one that did not come in time.
    """

    id: str
    image: bytes
    confidence: float | None
    steps: int
    queue_s: float
    compute_s: float
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

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ImageResult:
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one rank of the pool does: its role, and the largest batch it runs."""

    role: Role
    batch_size: int


class ReplicaChoice(StrEnum):
    """Which replica of the role gets a request."""

    EARLIEST_FINISH = "earliest-finish"  #: the one that would have its image ready first
    RANDOM = "random"  #: any, whatever its load


@dataclass(frozen=True, slots=True)
class Rules:
    """How requests are sent, dropped and answered under a plan. The defaults are Weir's; baselines have others.

    Attributes:
        replica_choice: see :class:`ReplicaChoice`.
        heavy_entry: share of requests that go to the heavy variant at once, drawn at random; the others start light.
        drop_after_s: a request whose image cannot be ready this many seconds after its admission is dropped; None
            refuses at admission what cannot be ready in time, and keeps all else.
        light_fallback: a deferred request is answered with its light image when the heavy one would be late.
        direct: a cache hit that saves at least this share of the steps goes to the heavy variant at once; the others
            begin light and go on from their state only if they are deferred. None: what the service's cache says.
        heavy_levels: a request without a hit whose predicted level (``weir/prompt_levels.py``) lies below this goes to
            the heavy variant at once; 0: none does.
        reuse: False leaves what the cache finds alone, for there is time: images are drawn from noise, but for requests
            that ask for the cache themselves.
        heavy_steps: denoising steps of heavy runs from noise, for requests that neither say how many nor ask for the
            heavy variant; None: the variant's own. A cached state that would leave more is left alone.
        light: name of the light variant that the cascade draws with, where the service holds several; None: the
            family's own. The threshold is one of its discriminator.
        dispatch_again: the queue of a replica that changes its role goes to others of the old role; otherwise the
            replica works it off in its new role.
    """

    replica_choice: ReplicaChoice = ReplicaChoice.EARLIEST_FINISH
    heavy_entry: float = 0.0
    drop_after_s: float | None = None
    light_fallback: bool = True
    dispatch_again: bool = True
    direct: float | None = None
    heavy_levels: int = 0
    reuse: bool = True
    heavy_steps: int | None = None
    light: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.heavy_entry) and 0 <= self.heavy_entry <= 1):
            raise PlanError(f"rules.heavy_entry is {self.heavy_entry}; it must lie in 0…1")
        if self.drop_after_s is not None and not (math.isfinite(self.drop_after_s) and self.drop_after_s > 0):
            raise PlanError(f"rules.drop_after_s is {self.drop_after_s}; it must be above 0")
        if self.direct is not None and not (math.isfinite(self.direct) and 0 <= self.direct <= 1):
            raise PlanError(f"rules.direct is {self.direct}; it must lie in 0…1")
        if not (isinstance(self.heavy_levels, int) and self.heavy_levels >= 0):
            raise PlanError(f"rules.heavy_levels is {self.heavy_levels}; it must be a whole number of at least 0")
        if self.heavy_steps is not None and not (isinstance(self.heavy_steps, int) and self.heavy_steps >= 1):
            raise PlanError(f"rules.heavy_steps is {self.heavy_steps}; it must be a whole number of at least 1")
        if self.light is not None and not (isinstance(self.light, str) and self.light):
            raise PlanError(f"rules.light is {self.light!r}; it must be the name of a light variant")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Rules:
        """Reads what ``dataclasses.asdict`` wrote.

        Raises:
            PlanError, TypeError, ValueError: a key is unknown, or a value is out of range.
        """
        return cls(**{**fields, "replica_choice": ReplicaChoice(fields["replica_choice"])})


@dataclass(frozen=True, slots=True)
class Plan:
    """What the whole system does until the next plan; it travels as ``user_config`` and is checked where it arrives.

    Attributes:
        version: grows with every plan; consumers ignore one that is not newer than theirs.
        assignments: by rank in the pool. A rank beyond the end takes the last assignment.
        threshold: a light image with a confidence below it is deferred to the heavy variant, 0…1.
            0 defers nothing, 1 everything.
        admitted_rps: requests per second to admit; None admits all.
    """

    version: int
    assignments: tuple[Assignment, ...]
    threshold: float
    admitted_rps: float | None = None
    rules: Rules = Rules()

    def __post_init__(self) -> None:
        if self.version < 0:
            raise PlanError(f"version is {self.version}; it must be at least 0")
        if not self.assignments:
            raise PlanError("assignments is empty; a plan needs at least one replica")
        for rank, a in enumerate(self.assignments):
            if a.batch_size < 1:
                raise PlanError(f"assignments[{rank}].batch_size is {a.batch_size}; it must be at least 1")
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= 1):
            raise PlanError(f"threshold is {self.threshold}; it must lie in 0…1")
        if self.admitted_rps is not None and not (math.isfinite(self.admitted_rps) and self.admitted_rps >= 0):
            raise PlanError(f"admitted_rps is {self.admitted_rps}; it must be at least 0")

    @classmethod
    def split(
        cls,
        version: int,
        light: int,
        heavy: int,
        *,
        light_batch: int,
        heavy_batch: int,
        threshold: float,
        admitted_rps: float | None = None,
        rules: Rules = Rules(),
    ) -> Plan:
        """The plan of a pool with ``light`` replicas in the light role and ``heavy`` in the heavy one."""
        assignments = (Assignment(Role.LIGHT, light_batch),) * light
        assignments += (Assignment(Role.HEAVY, heavy_batch),) * heavy
        return cls(version, assignments, threshold, admitted_rps, rules)

    def assignment(self, rank: int) -> Assignment:
        """What the replica of this rank does."""
        return self.assignments[min(rank, len(self.assignments) - 1)]

    def count(self, role: Role) -> int:
        return sum(a.role is role for a in self.assignments)

    def defers(self, confidence: float | None) -> bool:
        """Whether a light image of this confidence goes on to the heavy variant; None counts as 0."""
        return self.threshold >= 1 or (confidence or 0.0) < self.threshold

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` reads it back."""
        return {
            "version": self.version,
            "assignments": [[a.role.value, a.batch_size] for a in self.assignments],
            "threshold": self.threshold,
            "admitted_rps": self.admitted_rps,
            "rules": asdict(self.rules),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            PlanError: a key is missing or unknown, or a value is out of range; the message names it.
        """
        unknown = set(fields) - {"version", "assignments", "threshold", "admitted_rps", "rules"}
        if unknown:
            raise PlanError(f"unknown keys {sorted(unknown)}")
        try:
            assignments = tuple(Assignment(Role(r), int(b)) for r, b in fields["assignments"])
            rps = fields.get("admitted_rps")
            return cls(
                version=int(fields["version"]),
                assignments=assignments,
                threshold=float(fields["threshold"]),
                admitted_rps=None if rps is None else float(rps),
                rules=Rules.from_dict(fields["rules"]) if "rules" in fields else Rules(),
            )
        except KeyError as error:
            raise PlanError(f"the key {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise PlanError(str(error)) from None


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

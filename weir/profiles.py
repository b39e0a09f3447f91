"""Profile files: measured latencies, confidences and qualities of a family on one kind of device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weir.core import DeferralCurve, ImageSize, LatencyProfile
from weir.errors import ConfigError
from weir.image_sizes import SizeField
from weir.json_files import read_json
from weir.plan import HEAVY, LIGHT
from weir.size_costs import cost_at


class FixedCosts(BaseModel):
    """Median seconds per image besides its denoising steps.

    Attributes:
        png_s: time after the step loop continues until the image is complete; on CUDA it includes decoding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_s: float = Field(ge=0)
    decode_s: float = Field(ge=0)
    discriminator_s: float = Field(0.0, ge=0)
    png_s: float = Field(0.0, ge=0)


class QualityProfile(BaseModel):
    """Measured quality of mixes of one variant with the last one, and of shorter runs of the last variant.

    Attributes:
        values: quality at equally spaced shares of the variant's images, from 0 to 1.
        by_heavy_steps: quality of the last variant alone with fewer denoising steps than its own, on the same scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[float, ...] = Field(min_length=2)
    smaller_is_better: bool = Field(description="true for distances such as FID")
    by_heavy_steps: dict[int, float] = Field(
        default_factory=dict,
        description="quality of the last variant alone, by number of steps; empty: not measured",
    )

    @model_validator(mode="after")
    def _steps_are_steps(self) -> QualityProfile:
        if not all(steps >= 1 and math.isfinite(q) for steps, q in self.by_heavy_steps.items()):
            raise ValueError("by_heavy_steps: steps must be at least 1, and each quality finite")
        return self


class BatchTimes(BaseModel):
    """Median seconds per batch of one variant at one size, from text encoding to PNG, with the variant's discriminator.

    Published profiles only have these. Profiles of ``weir profile`` also have the seconds of one step by batch size and
    the fixed costs per image, as needed for images that join and leave at every step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_sizes: tuple[int, ...] = Field(min_length=1)
    latency_s: tuple[float, ...] = Field(min_length=1)
    step_s: tuple[float, ...] = Field((), description="by batch size; empty: only whole batches were measured")
    fixed: FixedCosts | None = None

    @model_validator(mode="after")
    def _a_curve(self) -> BatchTimes:
        if len(self.batch_sizes) != len(self.latency_s):
            raise ValueError("batch_sizes and latency_s must have one entry for each batch size")
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)) or self.batch_sizes[0] < 1:
            raise ValueError("batch_sizes must ascend from at least 1")
        if not all(math.isfinite(s) and s > 0 for s in self.latency_s):
            raise ValueError("latency_s must be positive seconds")
        if self.step_s and (len(self.step_s) != len(self.batch_sizes) or min(self.step_s) <= 0):
            raise ValueError("step_s must have one entry of positive seconds for each batch size, or none at all")
        if bool(self.step_s) != (self.fixed is not None):
            raise ValueError("step_s and fixed belong together; give both or neither")
        return self

    @property
    def latency(self) -> LatencyProfile:
        """Seconds per batch, made non-decreasing in the batch size to remove noise."""
        return LatencyProfile(self.batch_sizes, tuple(accumulate(self.latency_s, max)))

    @property
    def stepwise(self) -> bool:
        """Whether the time of a step was measured, and not only that of whole batches."""
        return bool(self.step_s)

    @property
    def fixed_s(self) -> float:
        """Device time per image besides its steps, seconds; 0 if only whole batches were measured."""
        return 0.0 if self.fixed is None else self.fixed.text_s + self.fixed.decode_s + self.fixed.discriminator_s


class VariantProfile(BatchTimes):
    """Measurements of one variant. Its own times are those of the profile's own size.

    Attributes:
        sizes: times at other sizes.
        confidences: confidences in images of held-out prompts. In one file, those of all variants belong to the same
            prompts in the same order. Those of the last variant are of the first variant's discriminator.
        quality: quality of mixes of this variant with the last one.
    """

    name: str
    steps: int = Field(ge=1)
    sizes: dict[SizeField, BatchTimes] = Field(default_factory=dict)
    confidences: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((), description="empty: not measured")
    quality: QualityProfile | None = Field(
        None, description="null: quality is assumed to grow with the share of the last variant"
    )

    @model_validator(mode="after")
    def _times_of_one_kind(self) -> VariantProfile:
        for size, times in self.sizes.items():
            if times.stepwise != self.stepwise:
                raise ValueError(f"sizes.{size}: step_s and fixed have to be measured at all sizes or at none")
        return self

    @property
    def step_seconds(self) -> LatencyProfile:
        """Seconds of one step by batch size; if only whole batches were measured, an equal share of the batch."""
        return LatencyProfile(self.batch_sizes, self.step_s or tuple(s / self.steps for s in self.latency_s))

    def work(self, steps: int) -> float:
        """Cost of a run of ``steps`` steps relative to the variant's own number of steps, at batch size 1.

        The share of the fixed costs is largest at batch size 1.
        """
        whole = self.latency_s[0]
        fixed = min(whole, self.fixed_s)
        return (fixed + (whole - fixed) * steps / self.steps) / whole

    def at(self, size: ImageSize, own: ImageSize) -> VariantProfile:
        """This variant with the times of another size: measured, or by :func:`weir.size_costs.cost_at`.

        Texts and verdicts take the same time at every size: judges scale images to a size of their own.

        Args:
            own: size of the variant's own times.
        """
        if size == own:
            return self
        measured = {own: self, **self.sizes}
        times = measured.get(size) or self._interpolated(size, measured)
        return self.model_copy(update={name: getattr(times, name) for name in BatchTimes.model_fields})

    def _interpolated(self, size: ImageSize, measured: Mapping[ImageSize, BatchTimes]) -> BatchTimes:
        def cost(seconds: Iterable[float]) -> float:
            return cost_at(size.pixels, zip([it.pixels for it in measured], seconds, strict=True))

        def curve(name: str) -> tuple[float, ...]:
            curves = [LatencyProfile(times.batch_sizes, getattr(times, name)) for times in measured.values()]
            return tuple(cost(it.at(batch) for it in curves) for batch in self.batch_sizes)

        fixed = None
        if self.fixed is not None:
            by_size = ("decode_s", "png_s")
            update = {name: cost(getattr(times.fixed, name) for times in measured.values()) for name in by_size}
            fixed = self.fixed.model_copy(update=update)
        return BatchTimes(
            batch_sizes=self.batch_sizes,
            latency_s=curve("latency_s"),
            step_s=curve("step_s") if self.step_s else (),
            fixed=fixed,
        )


class Profile(BaseModel):
    """A profile file (``deploy/profiles/``): the variants of a family on one kind of device, in the ladder's order.

    A file has ``variants`` or, for a ladder of two, ``light``, ``heavy`` and the light variant's ``confidences`` and
    ``quality``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    device: str
    size: SizeField | None = Field(None, description="size of the variants' own times; null: the family's own")
    variants: dict[str, VariantProfile]
    image_bytes: int = Field(
        0, ge=0, le=64 * 2**20, description="size of an image; emulated replicas answer with as much"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """Converts ``light``, ``heavy``, ``confidences`` and ``quality`` to a ladder of two."""
        short = {LIGHT, HEAVY, "confidences", "quality"}
        if not isinstance(given, Mapping) or not short & given.keys():
            return given
        if "variants" in given:
            raise ValueError("give either variants, or light, heavy, confidences and quality")
        if missing := [key for key in (LIGHT, HEAVY) if key not in given]:
            raise ValueError(f"{missing[0]} is missing; a profile has at least two variants")
        light = given[LIGHT]
        if isinstance(light, Mapping):
            light = {**light, **{key: given[key] for key in ("confidences", "quality") if given.get(key) is not None}}
        fields = {key: value for key, value in given.items() if key not in short}
        return {**fields, "variants": {LIGHT: light, HEAVY: given[HEAVY]}}

    @model_validator(mode="after")
    def _a_ladder(self) -> Profile:
        if len(self.variants) < 2:
            raise ValueError("variants: a profile has at least two, from the fastest to the best")
        if self.heavy.quality is not None:
            raise ValueError(
                f"{self.keys[-1]}: the quality of a mix belongs to the variant that is mixed with the last"
            )
        measured = {len(variant.confidences) for variant in self.variants.values() if variant.confidences}
        if len(measured) > 1:
            raise ValueError("confidences of all variants must be of the same prompts in the same order")
        for key, variant in self.variants.items():
            by_steps = variant.quality.by_heavy_steps if variant.quality else {}
            if any(steps >= self.heavy.steps for steps in by_steps):
                raise ValueError(
                    f"{key}: quality.by_heavy_steps: all must be fewer than the last variant's {self.heavy.steps} steps"
                )
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the variants, from the fastest to the best."""
        return tuple(self.variants)

    @property
    def light(self) -> VariantProfile:
        """The first variant, the fastest."""
        return self.variants[self.keys[0]]

    @property
    def heavy(self) -> VariantProfile:
        """The last variant, the best."""
        return self.variants[self.keys[-1]]

    @property
    def confidences(self) -> tuple[float, ...]:
        """The first variant's confidences."""
        return self.light.confidences

    @property
    def quality(self) -> QualityProfile | None:
        """The first variant's quality profile."""
        return self.light.quality

    @property
    def stepwise(self) -> bool:
        """Whether workers with this profile let images join and leave at every step."""
        return all(variant.stepwise for variant in self.variants.values())

    def variant(self, key: str, size: ImageSize | None = None) -> VariantProfile:
        """The variant with the given key, and its times at a size; None: at the profile's own.

        A profile whose own size is unknown has the same times at every size.

        Raises:
            KeyError: there is no such variant.
        """
        variant = self.variants[key]
        return variant if size is None or self.size is None else variant.at(size, self.size)

    def measured_at(self, own: ImageSize | None) -> Profile:
        """This profile, whose own size is ``own`` if it names none."""
        return self if own is None or self.size is not None else self.model_copy(update={"size": own})

    def price(self, size: ImageSize) -> float:
        """Cost of an image of a size as a multiple of one of the profile's own size, for the last variant alone.

        The last variant takes most of the time of a cascade, and the others cost about as many times more.
        """
        last = self.keys[-1]
        return self.variant(last, size).latency_s[0] / self.variants[last].latency_s[0]

    def deferral(self, key: str | None = None) -> DeferralCurve:
        """The deferral curve of a variant's confidences; by default of the first variant's."""
        return deferral_of((self.light if key is None else self.variants[key]).confidences)


def deferral_of(confidences: Sequence[float], grid: int = 200) -> DeferralCurve:
    """The deferral curve F(t): the share of confidences below t, at ``grid`` + 1 thresholds from 0 to 1; F(1) is 1."""
    ascending = sorted(confidences)
    thresholds = tuple(i / grid for i in range(grid + 1))
    below, shares = 0, []
    for t in thresholds[:-1]:
        while below < len(ascending) and ascending[below] < t:
            below += 1
        shares.append(below / max(1, len(ascending)))
    return DeferralCurve(thresholds, (*shares, 1.0))


def load_profile(path: Path | str, ladder: Sequence[str] = (), size: ImageSize | None = None) -> Profile:
    """Reads a profile.

    Args:
        ladder: keys that the profile's variants must have; empty: any.
        size: the family's own, at which the profile must have been measured. A profile that names none was.

    Raises:
        ConfigError: names the file and the key, and how to create a profile.
    """
    path = Path(path)
    try:
        profile = Profile.model_validate(read_json(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; create it with `weir profile`") from None
    except ValidationError as error:
        problems = "\n".join(
            f"{path}: {'.'.join(map(str, p['loc'])) or '(whole file)'}: {p['msg']}" for p in error.errors()
        )
        raise ConfigError(f"{problems}\ncreate a new one with `weir profile`") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable JSON file: {error}") from None
    if ladder and profile.keys != tuple(ladder):
        raise ConfigError(
            f"{path}: it has the variants {', '.join(profile.keys)}, and the family {', '.join(ladder)}; "
            "measure the family with `weir profile`"
        )
    if size is not None and profile.size not in (None, size):
        raise ConfigError(
            f"{path}: it was measured at {profile.size}, and the family's own size is {size}; "
            "measure the family with `weir profile`"
        )
    return profile.measured_at(size)

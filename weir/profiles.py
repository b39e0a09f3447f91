"""Profile files: what a family costs on one kind of device, and how sure its discriminators are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weir.core import DeferralCurve, LatencyProfile
from weir.errors import ConfigError
from weir.plan import HEAVY, LIGHT


class FixedCosts(BaseModel):
    """Median seconds for each image beside its denoising steps.

    ``png_s`` does not hold up the next step: from then until the picture is there (on CUDA that includes the decoder).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_s: float = Field(ge=0)
    decode_s: float = Field(ge=0)
    discriminator_s: float = Field(0.0, ge=0)
    png_s: float = Field(0.0, ge=0)


class QualityProfile(BaseModel):
    """Measured quality of a mix of one variant with the last one, at equal steps of its share, from none to all; and of
    images of the last variant with fewer denoising steps than its own, on the same scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[float, ...] = Field(min_length=2)
    smaller_is_better: bool = Field(description="true for distances such as FID")
    by_heavy_steps: dict[int, float] = Field(
        default_factory=dict,
        description="of the last variant alone, by steps; a plan may choose any. Empty: not measured",
    )

    @model_validator(mode="after")
    def _steps_are_steps(self) -> QualityProfile:
        if not all(steps >= 1 and math.isfinite(q) for steps, q in self.by_heavy_steps.items()):
            raise ValueError("by_heavy_steps: steps must be at least 1, and each quality finite")
        return self


class VariantProfile(BaseModel):
    """Median seconds per batch (text encoding to encoded PNG; with the discriminator where one follows the variant).

    Published profiles end there. One that ``weir profile`` measured also has the seconds of one step, by batch size,
    and the fixed costs: what images cost that join and leave at every step.

    Attributes:
        confidences: of single images of held-out prompts. In one file every variant's are of the same prompts in the
            same order. The last variant's are the first discriminator's in its images.
        quality: of mixes of this variant with the last one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    steps: int = Field(ge=1)
    batch_sizes: tuple[int, ...] = Field(min_length=1)
    latency_s: tuple[float, ...] = Field(min_length=1)
    step_s: tuple[float, ...] = Field((), description="by batch size; empty: only whole batches were measured")
    fixed: FixedCosts | None = None
    confidences: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((), description="empty: not measured")
    quality: QualityProfile | None = Field(
        None, description="none: the more images are of the last variant, the better"
    )

    @model_validator(mode="after")
    def _a_curve(self) -> VariantProfile:
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
        """A larger batch that was measured to take less time counts as taking as long: that was noise."""
        return LatencyProfile(self.batch_sizes, tuple(accumulate(self.latency_s, max)))

    @property
    def stepwise(self) -> bool:
        """Whether steps were measured, and not only whole batches."""
        return bool(self.step_s)

    @property
    def step_seconds(self) -> LatencyProfile:
        """Seconds of one step by batch size; of a whole-batch profile an equal share of the batch."""
        return LatencyProfile(self.batch_sizes, self.step_s or tuple(s / self.steps for s in self.latency_s))

    @property
    def fixed_s(self) -> float:
        """Seconds that an image takes the device beside its steps; 0 where only whole batches were measured."""
        return 0.0 if self.fixed is None else self.fixed.text_s + self.fixed.decode_s + self.fixed.discriminator_s

    def work(self, steps: int) -> float:
        """What a run of so many steps costs, as a share of one of the variant's own number: at batch 1, where the fixed
        costs are the largest part."""
        whole = self.latency_s[0]
        fixed = min(whole, self.fixed_s)
        return (fixed + (whole - fixed) * steps / self.steps) / whole


class Profile(BaseModel):
    """One file of ``deploy/profiles/``: the variants of a family on one kind of device, in the order of the ladder.

    A file gives ``variants``, or for a ladder of two ``light``, ``heavy`` and the light variant's ``confidences`` and
    ``quality``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    device: str
    variants: dict[str, VariantProfile]

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """``light``, ``heavy``, ``confidences`` and ``quality`` as a ladder of two."""
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
        """The first variant's."""
        return self.light.confidences

    @property
    def quality(self) -> QualityProfile | None:
        """The first variant's."""
        return self.light.quality

    @property
    def stepwise(self) -> bool:
        """Whether workers with this profile let images join and leave at every step."""
        return all(variant.stepwise for variant in self.variants.values())

    def variant(self, key: str) -> VariantProfile:
        """The variant of this key.

        Raises:
            KeyError: there is none.
        """
        return self.variants[key]

    def deferral(self, key: str | None = None) -> DeferralCurve:
        """F(t) of a variant's confidences; of the first one's where no key is given."""
        return deferral_of((self.light if key is None else self.variants[key]).confidences)


def deferral_of(confidences: Sequence[float], grid: int = 200) -> DeferralCurve:
    """F(t): the share of confidences below t, on ``grid`` + 1 thresholds from 0 to 1 (at 1 everything defers)."""
    ordered = sorted(confidences)
    thresholds = tuple(i / grid for i in range(grid + 1))
    below, shares = 0, []
    for t in thresholds[:-1]:
        while below < len(ordered) and ordered[below] < t:
            below += 1
        shares.append(below / max(1, len(ordered)))
    return DeferralCurve(thresholds, (*shares, 1.0))


def load_profile(path: Path | str, ladder: Sequence[str] = ()) -> Profile:
    """Reads a profile.

    Args:
        ladder: keys of the family's variants that it has to be of; empty: any.

    Raises:
        ConfigError: names the file and the key, and how to make a new one.
    """
    path = Path(path)
    try:
        profile = Profile.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; make it with `weir profile`") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a readable JSON file: {error}") from None
    except ValidationError as error:
        problems = "\n".join(
            f"{path}: {'.'.join(map(str, p['loc'])) or '(whole file)'}: {p['msg']}" for p in error.errors()
        )
        raise ConfigError(f"{problems}\nmake a fresh one with `weir profile`") from None
    if ladder and profile.keys != tuple(ladder):
        raise ConfigError(
            f"{path}: it has the variants {', '.join(profile.keys)}, and the family {', '.join(ladder)}; "
            "measure the family with `weir profile`"
        )
    return profile

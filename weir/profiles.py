"""Profile files: what a family costs on one kind of device, and how sure its discriminator is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weir.core import DeferralCurve, LatencyProfile, Role
from weir.errors import ConfigError


class FixedCosts(BaseModel):
    """Median seconds for each image beside its denoising steps.

    ``png_s`` does not hold up the next step: from then until the picture is there (on CUDA that includes the decoder).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_s: float = Field(ge=0)
    decode_s: float = Field(ge=0)
    discriminator_s: float = Field(0.0, ge=0)
    png_s: float = Field(0.0, ge=0)


class VariantProfile(BaseModel):
    """Median seconds per batch (text encoding to encoded PNG; for a light variant with its discriminator).

    Published profiles end there. One that ``weir profile`` measured also has the seconds of one step, by batch size,
    and the fixed costs: what images cost that join and leave at every step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    steps: int = Field(ge=1)
    batch_sizes: tuple[int, ...] = Field(min_length=1)
    latency_s: tuple[float, ...] = Field(min_length=1)
    step_s: tuple[float, ...] = Field((), description="by batch size; empty: only whole batches were measured")
    fixed: FixedCosts | None = None

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


class QualityProfile(BaseModel):
    """Measured quality of a mix at equal steps of its light share, from all heavy to all light, and of heavy images of
    fewer denoising steps than the variant's own, on the same scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[float, ...] = Field(min_length=2)
    smaller_is_better: bool = Field(description="true for distances such as FID")
    by_heavy_steps: dict[int, float] = Field(
        default_factory=dict, description="all heavy, by steps; a plan may choose any of them. Empty: not measured"
    )

    @model_validator(mode="after")
    def _steps_are_steps(self) -> QualityProfile:
        if not all(steps >= 1 and math.isfinite(q) for steps, q in self.by_heavy_steps.items()):
            raise ValueError("by_heavy_steps: steps must be at least 1, and each quality finite")
        return self


class Profile(BaseModel):
    """One file of ``deploy/profiles/``. ``confidences`` are single-image confidences on held-out prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    device: str
    light: VariantProfile
    heavy: VariantProfile
    confidences: tuple[float, ...] = Field((), description="each 0…1; empty: not measured")
    quality: QualityProfile | None = Field(None, description="none: the more is drawn heavy, the better")

    @model_validator(mode="after")
    def _confidences_are_shares(self) -> Profile:
        if any(not 0 <= c <= 1 for c in self.confidences):
            raise ValueError("confidences must lie in 0…1")
        by_steps = self.quality.by_heavy_steps if self.quality else {}
        if any(steps >= self.heavy.steps for steps in by_steps):
            raise ValueError(f"quality.by_heavy_steps: all must be fewer than heavy.steps, which is {self.heavy.steps}")
        return self

    @property
    def stepwise(self) -> bool:
        """Whether workers with this profile let images join and leave at every step."""
        return self.light.stepwise and self.heavy.stepwise

    def variant(self, role: Role) -> VariantProfile:
        return self.light if role is Role.LIGHT else self.heavy

    def deferral(self) -> DeferralCurve:
        """F(t) of :attr:`confidences`."""
        return deferral_of(self.confidences)


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


def load_profile(path: Path | str) -> Profile:
    """Reads a profile.

    Raises:
        ConfigError: names the file and the key, and how to make a new one.
    """
    path = Path(path)
    try:
        return Profile.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; make it with `weir profile`") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a readable JSON file: {error}") from None
    except ValidationError as error:
        problems = "\n".join(
            f"{path}: {'.'.join(map(str, p['loc'])) or '(whole file)'}: {p['msg']}" for p in error.errors()
        )
        raise ConfigError(f"{problems}\nmake a fresh one with `weir profile`") from None

"""Ladder files: the measured approximation levels of a family, from its best images to its fastest.

A level generates images by one of two strategies: AC resumes the heavy variant at step K from a cached state, SM runs
a smaller model (AccuScale/Argus, Agarwal et al., Middleware 2025). Level 0 is the heavy variant from noise, for both.
"""

from __future__ import annotations

import math
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weir.core import LatencyProfile
from weir.errors import ConfigError
from weir.json_files import read_json


class Strategy(StrEnum):
    """A way to approximate images."""

    AC = "ac"  #: approximate caching: the heavy variant resumes at step K
    SM = "sm"  #: smaller models


class Level(BaseModel):
    """One rung.

    ``quality`` is the mean over prompts relative to level 0, which has 1; ``latency_s`` are median seconds of a batch;
    ``load_s`` is the time that a GPU needs to load the level's model; ``source`` says where the figures are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    strategy: Strategy
    skipped_steps: int = Field(0, ge=0, description="K, for AC: denoising steps that a resumed image does not run")
    variant: str = Field("", description="for SM: the smaller model")
    batch_sizes: tuple[int, ...] = Field((1,), min_length=1)
    latency_s: tuple[float, ...] = Field(min_length=1)
    quality: float = Field(gt=0)
    load_s: float = Field(0.0, ge=0)
    source: str = ""

    @model_validator(mode="after")
    def _a_rung(self) -> Level:
        if len(self.batch_sizes) != len(self.latency_s):
            raise ValueError(f"level {self.name}: batch_sizes and latency_s must have one entry for each batch size")
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)) or self.batch_sizes[0] < 1:
            raise ValueError(f"level {self.name}: batch_sizes must ascend from at least 1")
        if min(self.latency_s) <= 0:
            raise ValueError(f"level {self.name}: latency_s must be positive seconds")
        if (self.strategy is Strategy.SM) != bool(self.variant):
            raise ValueError(f"level {self.name}: an sm level names its variant, and an ac level has none")
        if self.strategy is Strategy.SM and self.skipped_steps:
            raise ValueError(f"level {self.name}: skipped_steps belongs to ac levels")
        return self

    @property
    def latency(self) -> LatencyProfile:
        return LatencyProfile(self.batch_sizes, self.latency_s)

    def rate_rps(self, longest_s: float = math.inf) -> float:
        """Highest throughput of one GPU with batches of at most ``longest_s`` seconds; 0 if all batches take longer."""
        batches = zip(self.batch_sizes, self.latency_s, strict=True)
        return max((b / s for b, s in batches if s <= longest_s), default=0.0)


class PromptGroup(BaseModel):
    """Prompts with the same predicted level: their ``share`` of all prompts, and the mean quality of their images at
    each of the ladder's levels."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    share: float = Field(ge=0, le=1)
    quality: tuple[float, ...]


class Ladder(BaseModel):
    """A file of ``deploy/ladders/``: level 0, then the levels of each strategy from the best to the fastest.

    ``throughput_factor`` is the ratio of a GPU's throughput to that of one batch after another, above 1 where images
    overlap. ``similarity_shares`` are the shares of requests by AC level when the similarity of prompts alone chooses
    K. ``prompts`` has one group for each class that a classifier predicts, from the hardest prompts to the easiest;
    without groups all prompts are treated alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    family: str
    device: str
    steps: int = Field(ge=1, description="denoising steps of level 0")
    throughput_factor: float = Field(1.0, gt=0)
    levels: tuple[Level, ...] = Field(min_length=1)
    similarity_shares: tuple[float, ...] = ()
    prompts: tuple[PromptGroup, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Ladder:
        first = self.levels[0]
        if first.strategy is not Strategy.AC or first.skipped_steps or first.quality != 1:
            raise ValueError("levels[0] must be the heavy variant from noise: strategy ac, skipped_steps 0, quality 1")
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise ValueError(f"level names must differ; they are {', '.join(names)}")
        for strategy in Strategy:
            for better, faster in pairwise(self._of(strategy)):
                if strategy is Strategy.AC and not better.skipped_steps < faster.skipped_steps < self.steps:
                    raise ValueError(
                        f"levels out of order: {faster.name} skips {faster.skipped_steps} steps after {better.name} "
                        f"with {better.skipped_steps}; skipped_steps must ascend and stay below steps ({self.steps})"
                    )
                if not _falls(better, faster):
                    raise ValueError(
                        f"levels out of order: {faster.name} must be faster than {better.name} and of lower quality; "
                        "sort the levels, and leave out those that another beats in both"
                    )
        return self

    @model_validator(mode="after")
    def _add_up(self) -> Ladder:
        cached, similar = len(self._of(Strategy.AC)), self.similarity_shares
        if similar and len(similar) != cached:
            raise ValueError(
                f"similarity_shares has {len(similar)} entries for {cached} ac levels; give one for each, or none"
            )
        lists = {"similarity_shares": similar, "prompts": tuple(group.share for group in self.prompts)}
        for name, shares in lists.items():
            if shares and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
                raise ValueError(f"{name}: shares must be at least 0 and add up to 1; they add up to {sum(shares):g}")
        for i, group in enumerate(self.prompts):
            if len(group.quality) != len(self.levels):
                raise ValueError(f"prompts.{i}: quality has {len(group.quality)} entries for {len(self.levels)} levels")
        for k, level in enumerate(self.levels):
            mean = sum(group.share * group.quality[k] for group in self.prompts)
            if self.prompts and abs(mean - level.quality) > 0.01:
                raise ValueError(
                    f"prompts: their mean quality at level {level.name} is {mean:g}, not {level.quality:g}"
                )
        return self

    def _of(self, strategy: Strategy) -> list[Level]:
        first, *rest = self.levels
        return [first, *(level for level in rest if level.strategy is strategy)]

    def of(self, *strategies: Strategy) -> tuple[Level, ...]:
        """The levels of the strategies that no other of them beats in both speed and quality, from the best to the
        fastest. Level 0 is always the first."""
        together = {level.name: level for strategy in strategies for level in self._of(strategy)}
        kept: list[Level] = []
        for level in sorted(together.values(), key=lambda level: (-level.quality, level.latency_s[0])):
            if not kept or _falls(kept[-1], level):
                kept.append(level)
        return tuple(kept)

    def rates_rps(self, levels: tuple[Level, ...], longest_s: float = math.inf) -> tuple[float, ...]:
        """Images per second of one GPU at each of the levels, with batches of at most ``longest_s`` seconds."""
        return tuple(self.throughput_factor * level.rate_rps(longest_s) for level in levels)


def _falls(better: Level, faster: Level) -> bool:
    return (
        faster.quality < better.quality
        and faster.latency_s[0] < better.latency_s[0]
        and faster.rate_rps() > better.rate_rps()
    )


def load_ladder(path: Path | str) -> Ladder:
    """Reads a ladder.

    Raises:
        ConfigError: the file is not a valid ladder; the message names the file, the problem and the remedy.
    """
    path = Path(path)
    try:
        return Ladder.model_validate(read_json(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; deploy/ladders/argus-sdxl.json is an example") from None
    except ValidationError as error:
        problems = (f"{path}: {'.'.join(map(str, p['loc'])) or '(ladder)'}: {p['msg']}" for p in error.errors())
        raise ConfigError("\n".join(problems)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable JSON file: {error}") from None

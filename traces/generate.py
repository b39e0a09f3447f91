"""Generates the project's traces from recipes. Each recipe file also holds measurements of its trace.

    python -m traces.generate traces/normal.json traces/bursty.json

reads the recipe in each file, writes the CSV next to it and updates the measurements.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from traces.prompts import Habits, prompt_log
from traces.rate_curve import RateCurve
from traces.resemblance import resemblance
from traces.trace import Trace
from weir.errors import ConfigError
from weir.files import written_whole

#: Step length of rate curves, short compared with every change of the rate.
STEP_S = 0.5


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    seed: int = Field(ge=0)
    duration_s: float = Field(default=600, gt=0)
    cv: float = Field(default=1, gt=0, description="coefficient of variation of the gaps; 1 is Poisson")
    habits: Habits = Habits()


class NormalRecipe(_Recipe):
    """One day compressed: a trough at night, a peak at noon and a higher one in the evening; rates in requests/min."""

    kind: Literal["normal"] = "normal"
    trough_rpm: float = Field(default=60, ge=0)
    peak_rpm: float = Field(default=240, gt=0)

    def rate_curve(self) -> RateCurve:
        edges = _steps(self.duration_s)
        hour = 24 * (edges[:-1] + np.diff(edges) / 2) / self.duration_s
        # Lowest at 4 h, highest towards 20 h, with a second, lower hump before noon.
        form = -np.cos(2 * np.pi * (hour - 5) / 24) - 0.35 * np.cos(2 * np.pi * (hour - 3) / 12)
        form = (form - form.min()) / np.ptp(form)
        rates = (self.trough_rpm + (self.peak_rpm - self.trough_rpm) * form) / 60
        return RateCurve(tuple(edges.tolist()), tuple(rates.tolist()))


class BurstyRecipe(_Recipe):
    """Calm and bursts in turn, as in the bursty trace of Argus: 50 and 388 requests/min, about half of the time each.

    Their lengths are gamma distributed with the coefficient of variation ``length_cv``. A burst rises and falls over
    ``ramp_s``.
    """

    kind: Literal["bursty"] = "bursty"
    calm_rpm: float = Field(default=50, ge=0)
    burst_rpm: float = Field(default=388, gt=0)
    calm_s: float = Field(default=36, gt=0, description="mean length")
    burst_s: float = Field(default=32, gt=0, description="mean length")
    length_cv: float = Field(default=0.25, gt=0)
    ramp_s: float = Field(default=4, gt=0)

    def rate_curve(self) -> RateCurve:
        rng = np.random.default_rng((self.seed, 1))
        edges = _steps(self.duration_s)
        middle = edges[:-1] + np.diff(edges) / 2
        load = np.zeros_like(middle)
        shape = self.length_cv**-2
        t = 0.0
        while t < self.duration_s:
            start = t + rng.gamma(shape, self.calm_s / shape)
            t = start + rng.gamma(shape, self.burst_s / shape)
            load = np.maximum(load, np.clip(np.minimum(middle - start, t - middle) / self.ramp_s + 0.5, 0, 1))
        rates = (self.calm_rpm + (self.burst_rpm - self.calm_rpm) * load) / 60
        return RateCurve(tuple(edges.tolist()), tuple(rates.tolist()))


Recipe = Annotated[NormalRecipe | BurstyRecipe, Field(discriminator="kind")]


class RecipeFile(BaseModel):
    """The file of a trace's recipe and measurements."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe
    measured: dict[str, Any] = {}


def _steps(duration_s: float) -> np.ndarray:
    return np.linspace(0, duration_s, max(1, math.ceil(duration_s / STEP_S)) + 1)


def generate(recipe: NormalRecipe | BurstyRecipe) -> Trace:
    """Generates the trace of a recipe; equal recipes give equal traces."""
    arrivals = recipe.rate_curve().sample_arrivals(recipe.seed, recipe.cv)
    rng = np.random.default_rng((recipe.seed, 2))
    prompts = prompt_log(rng, len(arrivals), recipe.habits)
    # Each request has a seed, so that all systems that replay the trace generate the same images.
    seeds = rng.integers(2**31, size=len(arrivals)).tolist()
    return Trace(tuple(arrivals.tolist()), tuple(prompts), tuple(seeds), recipe.duration_s)


def measure(trace: Trace) -> dict[str, Any]:
    """Measurements of a trace: its number of requests, rates, and similarity of prompts."""
    rates = np.asarray(trace.rate_curve(10).rates_rps)
    return {
        "requests": len(trace),
        "mean_rpm": round(60 * trace.mean_rps, 1),
        "lowest_10s_rpm": round(60 * float(rates.min()), 1),
        "highest_10s_rpm": round(60 * float(rates.max()), 1),
        **{key: round(share, 3) for key, share in asdict(resemblance(trace.prompts)).items()},
    }


def read_recipe(path: Path | str) -> NormalRecipe | BurstyRecipe:
    """Reads a recipe file.

    Raises:
        ConfigError: names the file, the key and the accepted values.
    """
    path = Path(path)
    try:
        return RecipeFile.model_validate_json(path.read_bytes()).recipe
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problems = (f"{path}: {'.'.join(map(str, p['loc'])) or '(whole file)'}: {p['msg']}" for p in error.errors())
        raise ConfigError("\n".join(problems)) from None


def write(recipe: NormalRecipe | BurstyRecipe, path: Path | str) -> Trace:
    """Generates a trace and saves it at ``path`` (CSV), with its recipe next to it (JSON)."""
    path = Path(path)
    trace = generate(recipe)
    trace.save(path)
    beside = RecipeFile(recipe=recipe, measured=measure(trace))
    with written_whole(path.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(beside.model_dump(), indent=2) + "\n")
    return trace


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(read_recipe(name), Path(name).with_suffix(".csv"))

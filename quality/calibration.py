"""Which threshold buys which quality: from an evaluation of a family to what its profile and its plan should say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from weir.errors import ConfigError
from weir.profiles import QualityProfile


@dataclass(frozen=True, slots=True)
class Choice:
    """One threshold and what it gives.

    Attributes:
        threshold: light images with a confidence below it are deferred, 0…1.
        light_share: share of requests answered by the light variant.
        quality: mean quality of the mix.
        kept: the same as a share of all-heavy quality.
    """

    threshold: float
    light_share: float
    quality: float
    kept: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured quality of a mix of a lighter variant with the last one by its light share, and the confidences that
    steer the share.

    Attributes:
        confidences: of single light images on held-out prompts, each 0…1, in the order of the prompts.
        quality: at equal steps of the light share from 0 (all heavy) to 1, the most confident images staying light;
            more is better.
        by_heavy_steps: of all-heavy images, by their denoising steps; empty: not measured.
    """

    confidences: tuple[float, ...]
    quality: tuple[float, ...]
    by_heavy_steps: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, variant: str | None = None) -> Calibration:
        """Reads the ``evaluation.json`` that ``weir evaluate`` wrote.

        Args:
            variant: key of the lighter variant; None: the first.

        Raises:
            ConfigError: names the file, what is wrong with it, and how to make one.
        """
        remedy = "make it with `weir evaluate`"
        try:
            figures = json.loads(path.read_text())
            of = figures if variant is None else figures["variants"][variant]
            confidences = [float(c) for c in of["confidences"]]
            quality = tuple(float(q) for q in of["quality"]["discriminator"])
            by_steps = {int(n): float(q) for n, q in figures.get("heavy_by_steps", {}).items()}
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file; {remedy}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not a readable JSON file: {error}; {remedy}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: no evaluation of a cascade: {error} is missing or wrong; {remedy}") from None
        known = np.asarray([*confidences, *quality, *by_steps.values()])
        if not confidences or len(quality) < 2 or not np.isfinite(known).all() or quality[0] <= 0:
            raise ConfigError(f"{path}: confidences or quality are empty, not finite or not positive; {remedy}")
        if min(confidences) < 0 or max(confidences) > 1:
            raise ConfigError(f"{path}: confidences must lie in 0…1; {remedy}")
        return cls(tuple(confidences), quality, by_steps)

    def profile(self, heavy_steps: int) -> QualityProfile:
        """What was measured as the profile of a variant of so many steps holds it, for the controller to maximise."""
        shorter = {n: q for n, q in sorted(self.by_heavy_steps.items()) if n < heavy_steps}
        return QualityProfile(values=self.quality, smaller_is_better=False, by_heavy_steps=shorter)

    def at(self, threshold: float) -> Choice:
        """What this threshold gives."""
        below = float(np.mean(np.asarray(self.confidences) < threshold))
        light = 0.0 if threshold >= 1 else 1.0 - below
        quality = float(np.interp(light, np.linspace(0, 1, len(self.quality)), self.quality))
        return Choice(threshold, light, quality, quality / self.quality[0])

    def table(self, thresholds: Sequence[float]) -> list[Choice]:
        return [self.at(t) for t in thresholds]

    def least(self, kept: float, grid: int = 100) -> Choice:
        """The lowest threshold, and so the least heavy work, that keeps this share of all-heavy quality.

        Only thresholds count whose every higher one keeps it too, so that noise in the curve cannot lure it down.
        """
        best = self.at(1.0)
        for i in range(grid - 1, -1, -1):
            choice = self.at(i / grid)
            if choice.kept < kept:
                break
            best = choice
        return best

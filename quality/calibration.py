"""From an evaluation of a family to the quality of each threshold, for its profile and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from weir.errors import ConfigError
from weir.json_files import read_json
from weir.profiles import QualityProfile


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold and its effect.

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
    """Measured quality of mixes of a lighter variant with the last one, and the confidences that decide the mix.

    Attributes:
        confidences: of light images on held-out prompts, each 0…1, in the order of the prompts.
        quality: of the mix, at equal steps of the light share from 0 (all heavy) to 1, where the most confident images
            stay light; higher is better.
        by_heavy_steps: quality of all-heavy images, by their denoising steps; empty when not measured.
    """

    confidences: tuple[float, ...]
    quality: tuple[float, ...]
    by_heavy_steps: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, variant: str | None = None) -> Calibration:
        """Reads an ``evaluation.json`` of ``weir evaluate``.

        Args:
            variant: key of the lighter variant; None stands for the first.

        Raises:
            ConfigError: the file cannot be used; the message names the file, the problem and the remedy.
        """
        remedy = "create it with `weir evaluate`"
        try:
            figures = read_json(path)
            of = figures if variant is None else figures["variants"][variant]
            confidences = [float(c) for c in of["confidences"]]
            quality = tuple(float(q) for q in of["quality"]["discriminator"])
            by_steps = {int(n): float(q) for n, q in figures.get("heavy_by_steps", {}).items()}
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file; {remedy}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not a readable JSON file: {error}; {remedy}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: not an evaluation of a family: {error} is missing or wrong; {remedy}") from None
        known = np.asarray([*confidences, *quality, *by_steps.values()])
        if not confidences or len(quality) < 2 or not np.isfinite(known).all() or quality[0] <= 0:
            raise ConfigError(f"{path}: confidences or quality are empty, not finite or not positive; {remedy}")
        if min(confidences) < 0 or max(confidences) > 1:
            raise ConfigError(f"{path}: confidences must lie in 0…1; {remedy}")
        return cls(tuple(confidences), quality, by_steps)

    @staticmethod
    def last_confidences(path: Path, variant: str) -> tuple[float, ...]:
        """Confidences of the first discriminator in images of the last variant, from a file that :meth:`read` accepted;
        empty when the file has none."""
        of = read_json(path).get("variants", {}).get(variant, {})
        return tuple(float(c) for c in of.get("confidences", ()))

    def profile(self, heavy_steps: int) -> QualityProfile:
        """The measured quality in the form of a profile, for a last variant of ``heavy_steps`` steps."""
        shorter = {n: q for n, q in sorted(self.by_heavy_steps.items()) if n < heavy_steps}
        return QualityProfile(values=self.quality, smaller_is_better=False, by_heavy_steps=shorter)

    def at(self, threshold: float) -> Choice:
        """The effect of this threshold."""
        below = float(np.mean(np.asarray(self.confidences) < threshold))
        light = 0.0 if threshold >= 1 else 1.0 - below
        quality = float(np.interp(light, np.linspace(0, 1, len(self.quality)), self.quality))
        return Choice(threshold, light, quality, quality / self.quality[0])

    def table(self, thresholds: Sequence[float]) -> list[Choice]:
        return [self.at(t) for t in thresholds]

    def least(self, kept: float, grid: int = 100) -> Choice:
        """The lowest threshold, and so the least heavy work, that keeps this share of all-heavy quality.

        All higher thresholds have to keep it, too, so that noise in the curve cannot lead to a lower threshold.
        """
        best = self.at(1.0)
        for i in range(grid - 1, -1, -1):
            choice = self.at(i / grid)
            if choice.kept < kept:
                break
            best = choice
        return best

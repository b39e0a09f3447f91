"""Confidences of simulated images: recorded, or sampled from a deferral curve."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from controller.setting import Setting
from weir.core import DeferralCurve
from weir.errors import ConfigError

#: Number of scores that DiffServe recorded for each prompt, one per image.
IMAGES_PER_PROMPT = 4


def read_scores(path: Path | str) -> np.ndarray:
    """Reads confidences by prompt number from a file of P(fake), four lines per prompt: 1 − their mean, as published.

    Raises:
        ConfigError: the file cannot be read, or its lines are not probabilities in groups of four.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is refused below
            scores = np.loadtxt(path, ndmin=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected one probability per line: {error}") from None
    if len(scores) == 0 or len(scores) % IMAGES_PER_PROMPT or not ((scores >= 0) & (scores <= 1)).all():
        raise ConfigError(f"{path}: expected probabilities, {IMAGES_PER_PROMPT} lines for each prompt")
    return 1 - scores.reshape(-1, IMAGES_PER_PROMPT).mean(axis=1)


def recorded(scores: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Returns the recorded confidence of every request; prompt numbers beyond the recording wrap around."""
    return scores[prompts % len(scores)]


def sample_confidences(curve: DeferralCurve, count: int, seed: int) -> np.ndarray:
    """Samples independent confidences whose distribution is the deferral curve."""
    levels = np.random.default_rng(seed).random(count)
    shares = np.maximum.accumulate(np.array(curve.shares))
    return np.interp(levels, shares, np.array(curve.thresholds))


def confidences_of(setting: Setting, count: int, seed: int) -> dict[str, np.ndarray]:
    """Samples confidences of the images of every judged variant, [count] each, for a :class:`RequestStream`.

    In a ladder of more than two variants the confidences of one request belong to one measured prompt.
    """
    first, *middle = setting.variants[:-1]
    if not middle:
        return {first: sample_confidences(setting.deferral, count, seed)}
    measured = {first: setting.confidences} | {key: setting.middle[key].confidences for key in middle}
    if not all(measured.values()):
        curves = {first: setting.deferral} | {key: setting.middle[key].deferral for key in middle}
        return {
            key: sample_confidences(curve, count, seed + place) for place, (key, curve) in enumerate(curves.items())
        }
    prompts = np.random.default_rng(seed).integers(0, len(measured[first]), count)
    return {key: np.array(values)[prompts] for key, values in measured.items()}

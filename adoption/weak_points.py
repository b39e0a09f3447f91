"""What is still weak in an adoption, in sentences that say what to do about it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from adoption.context import Context
from adoption.discriminators import CLIP
from adoption.ranking import HALF, Figures, Pair

#: Below this area under the curve a discriminator says little.
_WEAK_AUC = 0.7
#: Least rise of the area under the curve over a doubling of the prompts that more prompts are worth.
_RISE = 0.005
#: Standard errors that make a difference significant.
_ERRORS = 2.0


def weak_points(context: Context, key: str) -> list[str]:
    """Sentences about one lighter variant; empty if nothing is weak."""
    found, pair = context.done("discriminators")[key], context.pair(key)
    figures = Figures.from_dict(found["candidates"][found["chosen"]])
    points = [_gap(key, context.last, pair), _discriminator(key, found["chosen"], figures, pair)]
    points += [_learning(found["learning"]), _few(pair)]
    points += [f"No cache: {it['why']}." for it in [context.done("cache")] if not it["made"]]
    return [point for point in points if point]


def _gap(key: str, last: str, pair: Pair) -> str:
    """Whether the last variant is better at all."""
    gain = pair.heavy - pair.light
    error = float(gain.std()) / math.sqrt(len(gain))
    if gain.mean() > _ERRORS * error:
        return ""
    return (
        f"By this measure {last} is not clearly better than {key}: {gain.mean():+.3f} ± {_ERRORS * error:.3f}. Measure "
        "more prompts, use another measure, or serve the faster variant alone."
    )


def _discriminator(key: str, chosen: str, figures: Figures, pair: Pair) -> str:
    random = float(np.mean([pair.light.mean(), pair.heavy.mean()]))
    if chosen == CLIP:
        return f"No trained discriminator of {key} was better than the CLIP score; more prompts may change that."
    if figures.at(HALF) <= random:
        return f"At half light images the discriminator of {key} is not better than chance; keep the threshold high."
    if figures.auc is not None and figures.auc < _WEAK_AUC:
        return (
            f"The area under the curve of {key}'s discriminator is {figures.auc:.2f}: it often takes a light image for "
            "as good as the heavy one when it is not."
        )
    return ""


def _learning(rows: list[dict[str, Any]]) -> str:
    known = [row for row in rows if row["auc"] is not None]
    if len(known) < 2:
        return ""
    before, now = known[-2], known[-1]
    doublings = math.log2(now["prompts"] / before["prompts"])
    rise = (now["auc"] - before["auc"]) / max(doublings, 1e-6)
    if rise < _RISE:
        return "More prompts would hardly help the discriminator: its learning curve is flat."
    return (
        f"Twice as many prompts would raise the area under the curve by about {rise:.2f}, if the learning curve goes "
        f"on as from {before['prompts']} to {now['prompts']} prompts."
    )


def _few(pair: Pair) -> str:
    error = float((pair.light - pair.heavy).std()) / math.sqrt(len(pair.light))
    return f"The quality of a mix is known to about ± {_ERRORS * error / 2:.3f} from {len(pair.light)} prompts."

"""The decisions of the cascade. Pure: what to draw first, and what to do with a finished image."""

from __future__ import annotations

import random

from weir.config import RedrawConfig
from weir.core import Path, Plan, Role


def first_role(plan: Plan, forced: Role | None, draw: float = 1.0) -> Role:
    """The variant that draws first: the forced one, else light where the plan has any.

    Args:
        draw: random in 0…1; the plan's ``heavy_entry`` is the share of draws that begin heavy.
    """
    if forced is not None:
        return forced
    heavy = plan.count(Role.LIGHT) == 0 or (draw < plan.rules.heavy_entry and plan.count(Role.HEAVY) > 0)
    return Role.HEAVY if heavy else Role.LIGHT


def noise_steps(plan: Plan, forced: Role | None, asked: int | None, own: int) -> int | None:
    """Denoising steps of a heavy run from noise: what the request asks for, else what the plan says.

    None is the variant's own number, which a request for the heavy variant itself gets; no plan makes a run longer.

    Args:
        own: the heavy variant's own number of steps.
    """
    if asked is not None or forced is Role.HEAVY:
        return asked
    planned = plan.rules.heavy_steps
    return planned if planned is not None and planned < own else None


def after_lookup(
    plan: Plan,
    role: Role,
    saved: float,
    *,
    direct: float,
    heavy_finish_at: float | None,
    latest: float,
    level: int | None = None,
) -> Role:
    """The variant that draws first once the cache has answered, where :func:`first_role` said ``role``.

    A hit that saves enough goes on from its state in the heavy variant right away, and so does a prompt that only the
    heavy variant is predicted to draw well, if that can make the deadline. Else the light variant draws first, and if
    its image is deferred the heavy one still goes on from the state.

    Args:
        saved: share of the heavy steps that the hit saves; 0 is a miss.
        direct: the least share for which the light variant is skipped, where the plan does not say.
        level: predicted for the prompt; None: not known.
    """
    if heavy_finish_at is None or heavy_finish_at > latest or plan.count(Role.HEAVY) == 0:
        return role
    least = direct if plan.rules.direct is None else plan.rules.direct
    at_once = saved >= least if saved > 0 else level is not None and level < plan.rules.heavy_levels
    return Role.HEAVY if at_once else role


def may_turn_light(plan: Plan, forced: Role | None) -> bool:
    """Whether a request that began heavy may be answered with a light image when its heavy one could only begin too
    late: it asked for no variant, and the plan lets light images stand in and draws some."""
    return forced is None and plan.rules.light_fallback and plan.count(Role.LIGHT) > 0


def is_deferred(confidence: float | None, threshold: float) -> bool:
    """Whether the discriminator wants the heavy variant: confidence below the threshold; a threshold of 1 defers all.

    An image without a confidence (a family without a discriminator) counts as 0.
    """
    return threshold >= 1 or (confidence or 0.0) < threshold


def is_drawn_anew(accept: float, confidence: float | None, *, heavy_finish_at: float | None, latest: float) -> bool:
    """Whether a heavy image that was resumed from another prompt's state is drawn once more, from noise: the
    discriminator doubts it, and the second one would be in time.

    Args:
        accept: the least confidence; 0 accepts every one.
        heavy_finish_at, latest: as in :func:`after_light`.
    """
    in_time = heavy_finish_at is not None and heavy_finish_at <= latest
    return in_time and (confidence or 0.0) < accept


def after_light(
    plan: Plan,
    confidence: float | None,
    *,
    forced: Role | None,
    heavy_finish_at: float | None,
    latest: float,
) -> Path:
    """Where a request goes once its light image is there.

    ``HEAVY`` means: try the heavy variant, and (where the plan's rules say so) fall back to the light image if it fails
    or is late.

    Args:
        heavy_finish_at: predicted; None when no heavy image can be drawn at all.
        latest: when the answer has to leave: the deadline less ``weir.core.margin_s``.
    """
    if forced is Role.LIGHT or plan.count(Role.HEAVY) == 0 or not is_deferred(confidence, plan.threshold):
        return Path.LIGHT
    if plan.rules.light_fallback and (heavy_finish_at is None or heavy_finish_at > latest):
        return Path.LIGHT_DEADLINE
    return Path.HEAVY


def is_drawn_again(
    redraw: RedrawConfig, confidence: float | None, draws: int, *, heavy_finish_at: float | None, latest: float
) -> bool:
    """Whether a heavy image is drawn once more from other noise: the discriminator doubts the best one so far, and
    there is time for another.

    Args:
        confidence: in the best heavy image so far; None: nobody judged it.
        draws: heavy images so far.
        heavy_finish_at: predicted for one that lets all others go first; None when none can be drawn.
        latest: when the answer has to leave.
    """
    if confidence is None or confidence >= redraw.below or draws > redraw.most:
        return False
    return heavy_finish_at is not None and heavy_finish_at <= latest


def next_seed(seed: int) -> int:
    """Of the next image of a request, 0…2³² − 1; the same for the same seed."""
    return random.Random(seed).getrandbits(32)

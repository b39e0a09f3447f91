"""The profile of replicas of which only a policy's setting is known: published cascades and ladders."""

from __future__ import annotations

from controller.setting import Setting
from weir.core import LatencyProfile
from weir.errors import ConfigError
from weir.profiles import FixedCosts, Profile, VariantProfile

#: Denoising steps of each variant; published figures are of whole batches, and say nothing of steps.
STEPS = 50


def setting_profile(setting: Setting, steps: int = STEPS) -> Profile:
    """A profile that takes the times of the setting, the discriminator's behind the first variant included.

    Args:
        steps: of each variant.

    Raises:
        ConfigError: there are several types of GPU.
    """
    if len(setting.gpus) != 1:
        raise ConfigError(f"the setting has {len(setting.gpus)} types of GPU; one can be simulated")
    gpu = setting.gpus[0]
    variants = {
        key: _variant(key, gpu.latency(key), steps, setting.discriminator_s if key == gpu.variants[0] else 0.0, setting)
        for key in gpu.variants
    }
    return Profile(family=gpu.name, device=gpu.name, variants=variants)


def _variant(key: str, latency: LatencyProfile, steps: int, judge_s: float, setting: Setting) -> VariantProfile:
    whole_s = tuple(seconds + judge_s for seconds in latency.latency_s)
    return VariantProfile(
        name=key,
        steps=steps,
        batch_sizes=latency.batch_sizes,
        latency_s=whole_s,
        step_s=tuple(seconds / steps for seconds in whole_s) if setting.stepwise else (),
        fixed=FixedCosts(text_s=0, decode_s=0) if setting.stepwise else None,
    )

"""Settings of simulated families, by name or from a profile file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from baselines.published import CASCADES, Cascade
from controller.setting import QualityCurve, Setting
from solvers.problem import GpuType
from weir.core import LatencyProfile
from weir.errors import ConfigError
from weir.profiles import load_profile

#: SDXL base at 25 steps on an A100-40G (ml-energy/leaderboard, Apache-2.0) behind cascade 3's light model.
SDXL_A100 = replace(
    CASCADES["diffserve-3"],
    name="sdxl-a100",
    heavy=LatencyProfile((1, 2, 4, 8), (2.8583, 5.3097, 10.5956, 21.5383)),
)
FAMILIES: dict[str, Cascade] = {**CASCADES, SDXL_A100.name: SDXL_A100}


def family_setting(family: str, gpus: int, slo_s: float | None = None) -> Setting:
    """Builds the setting of a published family by name, or of a profile file.

    Args:
        slo_s: deadline, seconds. None uses the published deadline; a profile file requires a value.

    Raises:
        ConfigError: ``family`` is neither a known name nor a readable profile, or the deadline or the GPUs are missing.
    """
    if gpus < 1:
        raise ConfigError(f"gpus is {gpus}; it must be at least 1")
    if slo_s is not None and not 0 < slo_s < 3600:
        raise ConfigError(f"slo is {slo_s}; it must lie in 0…3600 s")
    if family in FAMILIES:
        known = FAMILIES[family]
        return Setting(
            gpus=(GpuType.pair("a100", gpus, known.light, known.heavy),),
            slo_s=slo_s or known.slo_s,
            deferral=known.deferral,
            quality=QualityCurve(known.fid),
            discriminator_s=known.discriminator_s,
        )
    if not Path(family).exists():
        raise ConfigError(f"family is {family!r}; known: {', '.join(FAMILIES)}, or the path of a profile file")
    profile = load_profile(family)
    if slo_s is None:
        raise ConfigError(f"{family}: a profile has no deadline; give slo")
    return Setting.of(profile, gpus, slo_s)

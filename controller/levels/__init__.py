"""Policies for ladders of approximation levels, by name. Adding one is a class in its own file and an entry here."""

from __future__ import annotations

from baselines.argus import Argus
from baselines.clipper import ClipperHighAccuracy, ClipperHighThroughput
from baselines.level_proteus import Proteus
from baselines.nirvana import Nirvana
from baselines.pac import PromptAgnostic
from baselines.sommelier import Sommelier
from controller.level_policy import LevelPlan, LevelPolicy, LevelSetting
from controller.policies.weir_levels import Weir
from weir.errors import ConfigError

LEVEL_POLICIES: dict[str, type[LevelPolicy]] = {
    p.name: p
    for p in (ClipperHighAccuracy, ClipperHighThroughput, Nirvana, Sommelier, Proteus, PromptAgnostic, Argus, Weir)
}


def make_level_policy(name: str, setting: LevelSetting) -> LevelPolicy:
    """A fresh policy of that name.

    Raises:
        ConfigError: the name is not known; the message lists those that are. Or it needs what the ladder has not.
    """
    if name not in LEVEL_POLICIES:
        raise ConfigError(f"policy is {name!r}; for a ladder: {', '.join(LEVEL_POLICIES)}")
    return LEVEL_POLICIES[name](setting)


__all__ = ["LEVEL_POLICIES", "LevelPlan", "LevelPolicy", "LevelSetting", "make_level_policy"]

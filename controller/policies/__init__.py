"""Policies by name. Adding one is a class in its own file and an entry here."""

from __future__ import annotations

from baselines.all_heavy import AllHeavy, AllHeavyAsPublished
from baselines.all_light import AllLight, AllLightAsPublished
from baselines.diffserve import DiffServe
from baselines.diffserve_static import DiffServeStatic
from baselines.proteus import Proteus
from controller.policies.weir import Weir
from controller.policy import Policy
from controller.setting import Setting
from weir.errors import ConfigError

POLICIES: dict[str, type[Policy]] = {
    p.name: p
    for p in (
        AllLight,
        AllLightAsPublished,
        AllHeavy,
        AllHeavyAsPublished,
        Proteus,
        DiffServeStatic,
        DiffServe,
        Weir,
    )
}


def make_policy(name: str, setting: Setting) -> Policy:
    """A fresh policy for one run.

    Raises:
        ConfigError: the name is not known; the message lists those that are.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy is {name!r}; known: {', '.join(POLICIES)}")
    return POLICIES[name](setting)


__all__ = ["POLICIES", "Policy", "make_policy"]

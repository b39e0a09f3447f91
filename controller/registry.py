"""Every policy by name: what a service may run, and what ``weir compare`` compares.

A policy is a class in a file of its own and an entry here. Classes are imported when they are asked for, so that the
controller does not depend on the published systems in ``baselines/``. A name may also be ``module:Class`` of a user's
own :class:`~controller.policy.Policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from controller.policy import Policy
from controller.setting import Setting
from weir.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy.

    Attributes:
        source: ``module:name`` of what makes a policy from a :class:`~controller.setting.Setting`.
        system: that it belongs to.
        levels: assigns approximation levels, so that it plans on a published ladder as well.
        as_published: a variant of another policy with all that its authors' experiments had, for comparison with them
            only.
    """

    source: str
    system: str
    levels: bool = False
    as_published: bool = False


#: By name, in the order of tables; the first policy of a system is the system's own.
POLICIES: dict[str, Entry] = {
    "weir": Entry("controller.policies.ladder:weir", "Weir"),
    "weir-levels": Entry("controller.policies.weir_levels:WeirLevels", "Weir", levels=True),
    "diffserve": Entry("baselines.diffserve:DiffServe", "DiffServe"),
    "diffserve-static": Entry("baselines.diffserve_static:DiffServeStatic", "DiffServe"),
    "nirvana": Entry("baselines.nirvana:Nirvana", "NIRVANA", levels=True),
    "argus": Entry("baselines.argus:Argus", "Argus", levels=True),
    "pac": Entry("baselines.pac:PromptAgnostic", "Argus", levels=True),
    "sommelier": Entry("baselines.sommelier:Sommelier", "others", levels=True),
    "proteus": Entry("baselines.proteus:Proteus", "others"),
    "proteus-levels": Entry("baselines.proteus_levels:ProteusLevels", "others", levels=True),
    "clipper-light": Entry("baselines.clipper:ClipperHighThroughput", "others", levels=True),
    "clipper-heavy": Entry("baselines.clipper:ClipperHighAccuracy", "others", levels=True),
    "all-light": Entry("baselines.all_light:AllLight", "others"),
    "all-heavy": Entry("baselines.all_heavy:AllHeavy", "others"),
    "all-light-published": Entry("baselines.all_light:AllLightAsPublished", "others", as_published=True),
    "all-heavy-published": Entry("baselines.all_heavy:AllHeavyAsPublished", "others", as_published=True),
}


def names(*, levels: bool | None = None) -> tuple[str, ...]:
    """The registered policies; those that assign levels, or those that do not, where asked."""
    return tuple(name for name, entry in POLICIES.items() if levels is None or entry.levels is levels)


def system_of(name: str) -> str:
    """The system that a policy belongs to; "others" for a user's own."""
    return POLICIES[name].system if name in POLICIES else "others"


def policy_class(name: str) -> Callable[[Setting], Policy]:
    """What makes a policy of that name.

    Raises:
        ConfigError: the name is not known, and the message lists those that are; or the module or the class is not
            there, or is no policy.
    """
    source = POLICIES[name].source if name in POLICIES else name
    module, colon, attribute = source.partition(":")
    if not colon:
        raise ConfigError(f"policy is {name!r}; known: {', '.join(POLICIES)}, or module:Class of your own")
    try:
        made: Callable[[Setting], Policy] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"policy {name}: {error}; give module:Class of a class that can be imported") from None
    if name not in POLICIES and not (isinstance(made, type) and issubclass(made, Policy)):
        raise ConfigError(f"policy {name}: it is no subclass of controller.policy.Policy")
    return made


def make_policy(name: str, setting: Setting) -> Policy:
    """A fresh policy for one run.

    Raises:
        ConfigError: as :func:`policy_class`; or the policy needs what the setting does not have, and the message says
            what, and how to get it.
    """
    return policy_class(name)(setting)

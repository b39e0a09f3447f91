"""Registry of policies by name, for services and for ``weir compare``.

A policy is a class in a file of its own with an entry here. Classes are imported on demand, so that the controller does
not depend on the published systems in ``baselines/``. A name may also be ``module:Class`` of a user's own
:class:`~controller.policy.Policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from controller.policy import Policy
from controller.setting import Setting
from weir.errors import ConfigError
from weir.own_code import is_own, own


@dataclass(frozen=True, slots=True)
class Entry:
    """Registry entry of one policy.

    Attributes:
        source: ``module:name`` of the callable that makes the policy from a :class:`~controller.setting.Setting`.
        system: the system that the policy belongs to.
        levels: whether the policy assigns approximation levels, so that it can plan on a published ladder as well.
        as_published: whether this is a variant of another policy with every detail of the authors' experiments, for
            comparisons with their results only.
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
    """Returns the names of the registered policies; ``levels`` selects those that assign levels, or those that do
    not."""
    return tuple(name for name, entry in POLICIES.items() if levels is None or entry.levels is levels)


def system_of(name: str) -> str:
    """Returns the system that a policy belongs to; "others" for a user's own policy."""
    return POLICIES[name].system if name in POLICIES else "others"


def policy_class(name: str) -> Callable[[Setting], Policy]:
    """Returns the callable that makes a policy of that name.

    Raises:
        ConfigError: the name is unknown (the message lists the known ones), the module or the class does not exist, or
            the class is not a policy.
    """
    if name in POLICIES:
        module, _, attribute = POLICIES[name].source.partition(":")
        made: Callable[[Setting], Policy] = getattr(import_module(module), attribute)
        return made
    if not is_own(name):
        raise ConfigError(f"policy is {name!r}; known: {', '.join(POLICIES)}, or module:Class of your own")
    own_class: type[Policy] = own(name, "policy", of=Policy)
    return own_class


def make_policy(name: str, setting: Setting) -> Policy:
    """Makes a new policy for one run.

    Raises:
        ConfigError: as :func:`policy_class`; or the setting lacks a measurement that the policy needs, in which case
            the message names the measurement and the command that makes it.
    """
    return policy_class(name)(setting)

"""Selection of the policies of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controller.registry import make_policy
from controller.setting import Setting
from simulator.outcome import Outcome
from weir.errors import ConfigError

#: Either :func:`simulator.engine.simulate` or :func:`simulator.exact.simulate_exactly`.
Simulator = Callable[..., Outcome]


def chosen_policies(setting: Setting, asked: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the policies of a comparison: the requested ones, or else all known ones whose measurements the setting
    has.

    Raises:
        ConfigError: a requested policy is unknown, or cannot be made from the setting.
    """
    if asked is not None:
        for name in asked:
            make_policy(name, setting)
        return tuple(asked)
    return tuple(name for name in known if _can_be_made(name, setting))


def _can_be_made(name: str, setting: Setting) -> bool:
    try:
        make_policy(name, setting)
    except ConfigError:
        return False
    return True

"""Which policies a comparison runs, and in which simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controller.registry import make_policy
from controller.setting import Setting
from simulator.outcome import Outcome
from weir.errors import ConfigError

#: :func:`simulator.engine.simulate` or :func:`simulator.exact.simulate_exactly`.
Simulator = Callable[..., Outcome]


def chosen_policies(setting: Setting, asked: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The policies of a comparison: those asked for, else all known ones that the setting has the measurements for.

    Raises:
        ConfigError: one that was asked for is not known, or cannot be made from the setting.
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

"""Which images the next call of the denoiser advances. Pure: no clock, no asyncio, no torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

#: Every so many calls the oldest image goes first, however late it is: nobody waits for ever.
TURN_OF_THE_OLDEST = 8


class Recipe(NamedTuple):
    """What a request asks of the denoiser, with the variant's own values filled in."""

    variant: str
    width: int
    height: int
    steps: int
    guidance: float


@dataclass(slots=True, eq=False)
class Task:
    """An image in the making, or still to be begun, as the decision sees it.

    Attributes:
        ticket: grows with every arrival.
        call: tasks of equal ``call`` can share one call of the denoiser.
        deadline: unix time, seconds.
        left: denoising steps to go.
    """

    ticket: int
    call: Hashable
    deadline: float
    left: int


T = TypeVar("T", bound=Task)


def next_call(
    tasks: Iterable[T],
    limit: Callable[[T], int],
    now: float,
    step_s: Callable[[T], float] = lambda task: 0.0,
    turn: int = 1,
) -> tuple[T, ...]:
    """The tasks of the next call: the most urgent one and as many that can share its call as fit, most urgent first.

    Urgency is the earlier deadline, then the earlier arrival; with one SLO for all that is oldest first. The order of
    deadlines never changes as time goes by, so places do not go back and forth between tasks, as they would by least
    slack. A task without slack, that would miss its deadline even if it ran on its own from now on, comes after all
    others: it is late either way, and before them it would make others late too. Once in
    :data:`TURN_OF_THE_OLDEST` calls the oldest task goes first, so that a late one is done some day. The call never
    waits to fill up: a later task joins at the next step.

    Args:
        limit: the most tasks of such a call, at least 1.
        now: unix time, seconds.
        step_s: the least seconds that one step of the task takes.
        turn: counts the calls.
    """
    urgent = sorted(tasks, key=lambda t: (t.deadline < now + t.left * step_s(t), t.deadline, t.ticket))
    if not urgent:
        return ()
    if turn % TURN_OF_THE_OLDEST == 0:
        oldest = min(urgent, key=lambda t: t.ticket)
        urgent.remove(oldest)
        urgent.insert(0, oldest)
    first = urgent[0]
    return tuple([t for t in urgent if t.call == first.call][: max(1, limit(first))])

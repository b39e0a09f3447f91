"""Selects the images that the next call of the denoiser advances. Pure: no clock, no asyncio, no torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from weir.core import ImageSize
from weir.plan import Assignment, Plan
from weir.samplers import Scheduler

#: In one of this many calls the oldest image goes first, however late it is, so that no image waits forever.
OLDEST_FIRST_EVERY = 8


class BatchLimits:
    """The largest batch of each role, under the plans so far.

    A role to which a plan gives no replica keeps its last size: requests that still wait for it must not form batches
    of the size of another variant.
    """

    def __init__(self, plan: Plan):
        self._sizes: dict[str, int] = {}
        self.follow(plan)

    def follow(self, plan: Plan) -> None:
        """Takes the sizes of the next plan."""
        self._sizes |= {role: plan.batch_size(role) for role in plan.counts}

    def of(self, role: str, own: Assignment) -> int:
        """The limit for a role on a replica with this assignment; its own for a role that no plan has had."""
        return own.batch_size if own.role == role else self._sizes.get(role, own.batch_size)


class Recipe(NamedTuple):
    """Parameters of one denoising run: the request's, and the variant's own where the request has none."""

    variant: str
    size: ImageSize
    steps: int
    guidance: float
    sampler: Scheduler


@dataclass(slots=True, eq=False)
class Task:
    """An image that is waiting or being generated, with the attributes that the selection needs.

    Attributes:
        ticket: number of the task in order of arrival.
        call: tasks of equal ``call`` can share one call of the denoiser.
        deadline: seconds of a monotonic clock.
        left: number of denoising steps that remain.
        tenant, low_priority: an image of low priority joins no call of another tenant's image, which would take longer.
    """

    ticket: int
    call: Hashable
    deadline: float
    left: int
    tenant: str = ""
    low_priority: bool = False

    def joins(self, first: Task) -> bool:
        """Whether the task can be in a call that advances ``first``."""
        return self.call == first.call and (not self.low_priority or first.low_priority or self.tenant == first.tenant)


T = TypeVar("T", bound=Task)


def next_call(
    tasks: Iterable[T],
    limit: Callable[[T], int],
    now: float,
    step_s: Callable[[T], float] = lambda task: 0.0,
    turn: int = 1,
) -> tuple[T, ...]:
    """Tasks of the next call: the most urgent task and those that can share its call, most urgent first.

    A task is more urgent if its deadline is earlier, then if it arrived earlier; with one SLO for all tasks, the oldest
    is the most urgent. The order of deadlines does not change over time, so tasks do not displace each other back and
    forth, as they would under least slack first. A task that would miss its deadline even if it ran alone from now on
    comes after all others: it is late in any case, and would make others late. In one of
    :data:`OLDEST_FIRST_EVERY` calls the oldest task goes first, so that late tasks finish too; one of low priority only
    if there are no others. A call never waits for more tasks: a later task joins at the next step.

    Args:
        limit: largest number of tasks in the call of a task, at least 1.
        now: seconds of the deadlines' clock.
        step_s: shortest time of one step of the task, seconds.
        turn: number of this call.
    """
    urgent = sorted(tasks, key=lambda t: (t.deadline < now + t.left * step_s(t), t.deadline, t.ticket))
    if not urgent:
        return ()
    if turn % OLDEST_FIRST_EVERY == 0:
        oldest = min(urgent, key=lambda t: (t.low_priority, t.ticket))
        urgent.remove(oldest)
        urgent.insert(0, oldest)
    first = urgent[0]
    return tuple([t for t in urgent if t.joins(first)][: max(1, limit(first))])

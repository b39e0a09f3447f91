"""Which waiting requests form the next batch. Pure: no clock, no asyncio, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from weir.core import Role


class Recipe(NamedTuple):
    """What a batch has in common. Requests of equal recipes are *compatible*: one UNet call serves them all."""

    role: Role
    width: int
    height: int
    steps: int
    guidance: float


@dataclass(slots=True, eq=False)
class Waiting:
    """A queued request as the decision sees it.

    Attributes:
        ticket: grows with every arrival at this queue.
        deadline: unix time, seconds.
        cancelled: nobody waits for the answer any more.
    """

    ticket: int
    recipe: Recipe
    deadline: float
    cancelled: bool = False


Job = TypeVar("Job", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Decision(Generic[Job]):
    """What becomes of a queue: the three parts hold every request once.

    Attributes:
        batch: runs now; empty when nothing is left to run.
        dropped: was cancelled.
        waiting: stays, in the order of arrival.
    """

    batch: tuple[Job, ...]
    dropped: tuple[Job, ...]
    waiting: tuple[Job, ...]


def next_batch(
    queue: Iterable[Job],
    limit: Callable[[Recipe], int],
    now: float,
    service_s: Callable[[Recipe], float] = lambda recipe: 0.0,
) -> Decision[Job]:
    """The next batch: the most urgent request and as many compatible ones as fit, in order of urgency.

    Urgency is the earlier deadline, then the earlier arrival; with one SLO for all that is oldest first. Requests that
    would miss their deadline even if they ran now come after all others: they are late either way, and run before them
    they would make others late too. Callers cancel what they no longer want. The batch never waits to fill up: waiting
    costs every member time and gains nothing that the next batch does not gain too.

    Args:
        limit: the largest batch of a recipe, at least 1.
        now: unix time, seconds.
        service_s: how long a batch of the recipe is expected to run.
    """
    dropped: list[Job] = []
    live: list[Job] = []
    for job in queue:
        (dropped if job.cancelled else live).append(job)
    if not live:
        return Decision((), tuple(dropped), ())
    urgent = sorted(live, key=lambda job: (job.deadline < now + service_s(job.recipe), job.deadline, job.ticket))
    shared = urgent[0].recipe
    batch = [job for job in urgent if job.recipe == shared][: max(1, limit(shared))]
    taken = {job.ticket for job in batch}
    waiting = tuple(job for job in live if job.ticket not in taken)
    return Decision(tuple(batch), tuple(dropped), waiting)

"""What the controller sees, once a second, of the running system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Batch(NamedTuple):
    """One batch that a worker ran, with what it ran beside the variant's own number of steps left out.

    ``gpu`` is its type, in the order of the setting.
    """

    variant: str
    size: int
    seconds: float
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """Counts since the last observation, and the state at ``now_s``.

    Attributes:
        now_s: any clock that only moves forward.
        arrivals: requests that came in.
        confidences: in the images of the first variant of the chain, one value an image.
        confidences_by_variant: in the images of every judged variant, by its key.
        deferred: of the first variant's images, how many lay below the threshold.
        batches: that ended.
        replicas: live ones, by type of GPU in the order of the setting.
        queued: images waiting at replicas, by role.
        in_flight, deferred_in_flight: requests and deferred requests admitted, not answered and younger than 2 × SLO.
        late_answers: requests ever answered when older than 2 × SLO.
        late_deferred: deferred requests ever that grew older than 2 × SLO unanswered.
        reused: answers that resumed from a cached state, by the share of the last variant's steps that this saved.
        fetches: seconds that workers waited for each state to resume from, whether or not it came.
        found: lookups that found a state, by the share of the last variant's steps that it would save, used or not.
        missed: lookups that found none, by the level predicted for the prompt; none without a classifier.
        levels: of ``confidences``, the predicted level of each, −1 where it is not known; empty without a classifier.
        classes: requests that came in, by the class predicted for their prompt; none without a classifier.
        backlog_s: work that waits or runs, as seconds of every GPU; None: it is estimated from ``queued``.
    """

    now_s: float
    arrivals: int
    confidences: tuple[float, ...] = ()
    deferred: int = 0
    batches: tuple[Batch, ...] = ()
    replicas: tuple[int, ...] = ()
    queued: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    deferred_in_flight: int = 0
    late_answers: int = 0
    late_deferred: int = 0
    reused: Mapping[float, int] = field(default_factory=dict)
    fetches: tuple[float, ...] = ()
    found: Mapping[float, int] = field(default_factory=dict)
    missed: Mapping[int, int] = field(default_factory=dict)
    levels: tuple[int, ...] = ()
    confidences_by_variant: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    classes: Mapping[int, int] = field(default_factory=dict)
    backlog_s: float | None = None

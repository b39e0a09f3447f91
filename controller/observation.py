"""The observation of the running system that the controller makes once a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Batch(NamedTuple):
    """One batch that a worker ran. ``seconds`` covers the variant's own number of steps only; ``gpu`` is the index of
    the type of GPU in the setting."""

    variant: str
    size: int
    seconds: float
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """Counts since the last observation, and the state at ``now_s``.

    Attributes:
        now_s: time of a monotonic clock.
        arrivals: number of images that were requested, in images of the family's own size.
        confidences: confidences of images of the first variant of the chain, one value per image.
        confidences_by_variant: confidences of images of every judged variant, by its key.
        deferred: number of images of the first variant with a confidence below the threshold.
        batches: the batches that ended.
        replicas: number of live replicas, by type of GPU in the order of the setting.
        queued: number of images waiting at replicas, by role.
        in_flight, deferred_in_flight: number of requests and deferred requests that are admitted, unanswered and
            younger than 2 × SLO.
        late_answers: total number of requests that were answered when older than 2 × SLO.
        late_deferred: total number of deferred requests that became older than 2 × SLO unanswered.
        reused: number of answers that resumed from a cached state, by the share of the last variant's steps saved.
        fetches: seconds that workers waited for each state, whether or not it arrived.
        found: number of lookups that found a state, used or not, by the share of the last variant's steps that it would
            save.
        missed: number of lookups that found no state, by the predicted level of the prompt; empty without a classifier.
        levels: predicted level of each entry of ``confidences``, −1 where it is unknown; empty without a classifier.
        classes: number of requests, by the predicted class of their prompt; empty without a classifier.
        backlog_s: waiting and running work, as seconds of all GPUs; None when it has to be estimated from ``queued``.
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

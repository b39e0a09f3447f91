"""What became of every request of a simulated run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weir.cascade import AT_DEADLINE, FROM_CACHE

#: Value of :attr:`Outcome.paths` for a request that was refused, dropped or lost.
UNANSWERED = ""


class PlanInForce(NamedTuple):
    """The content of a plan, and the time at which it took effect.

    Attributes:
        at_s: seconds, on the clock of the arrivals.
        replicas: by role.
        chain, thresholds: as in :class:`weir.plan.Plan`.
    """

    at_s: float
    replicas: Mapping[str, int]
    chain: tuple[str, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run.

    Attributes:
        policy: its name.
        ladder: keys of the variants, from the fastest to the best.
        arrivals_s, finished_s: by request; a request without an answer finishes at infinity.
        paths: by request, the answer's (:attr:`weir.cascade.Answer.path`), or :data:`UNANSWERED`; strings.
        resumed_at: by request, the denoising step K that the image of the answer resumed at; 0: from noise.
        loss: by request; quality that its image is worth less because its run was a shortened one.
        busy_s: seconds of batches, all replicas together.
        role_changes: replicas that got another role, over the whole run.
        plans: every plan, in order.
        replicas: GPUs at the start.
    """

    policy: str
    slo_s: float
    ladder: tuple[str, ...]
    arrivals_s: np.ndarray
    finished_s: np.ndarray
    paths: np.ndarray
    resumed_at: np.ndarray
    loss: np.ndarray
    busy_s: float
    role_changes: int
    plans: tuple[PlanInForce, ...]
    replicas: int

    @property
    def latencies_s(self) -> np.ndarray:
        """Seconds from arrival to answer; infinite without one."""
        return self.finished_s - self.arrivals_s

    @property
    def violated(self) -> np.ndarray:
        """By request: answered after its deadline, or not at all."""
        return ~(self.latencies_s <= self.slo_s + 1e-9)

    @property
    def answered(self) -> np.ndarray:
        """By request: answered, in time or not."""
        return self.paths != UNANSWERED

    @property
    def resumed(self) -> np.ndarray:
        """By request: answered with an image that resumed from a stored state."""
        return self.paths == FROM_CACHE

    @property
    def at_deadline(self) -> np.ndarray:
        """By request: deferred, and answered with the image that it had because the next one would have been late."""
        return np.isin(self.paths, [variant + AT_DEADLINE for variant in self.ladder])

    def by(self, variant: str) -> np.ndarray:
        """By request: answered with an image of this variant."""
        paths = [variant, variant + AT_DEADLINE, *([FROM_CACHE] if variant == self.ladder[-1] else [])]
        return np.isin(self.paths, paths)

    @property
    def light(self) -> np.ndarray:
        """By request: answered with an image of another variant than the last."""
        return self.answered & ~self.by(self.ladder[-1])

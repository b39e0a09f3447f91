"""What became of every request of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Values of :attr:`Outcome.paths`.
UNANSWERED, ANSWERED_LIGHT, ANSWERED_AT_DEADLINE, ANSWERED_HEAVY = range(4)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run.

    Attributes:
        policy: its name.
        arrivals_s, finished_s: by request; a request without an answer finishes at infinity.
        paths: by request; :data:`UNANSWERED` was dropped or refused.
        resumed: by request; answered with a heavy image that went on from a cached state.
        loss: by request; quality that its image is worth less because its heavy run was a short one.
        busy_s: seconds of batches, all replicas together.
        role_changes: replicas that got another role, over the whole run.
        plans: (time, light replicas, heavy replicas, threshold) of every plan.
        replicas: GPUs at the start.
    """

    policy: str
    slo_s: float
    arrivals_s: np.ndarray
    finished_s: np.ndarray
    paths: np.ndarray
    resumed: np.ndarray
    loss: np.ndarray
    busy_s: float
    role_changes: int
    plans: tuple[tuple[float, int, int, float], ...]
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
    def light(self) -> np.ndarray:
        """By request: answered with the light image."""
        return (self.paths == ANSWERED_LIGHT) | (self.paths == ANSWERED_AT_DEADLINE)

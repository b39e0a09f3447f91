"""The interface of a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from solvers.milp import MixedProgram

#: Relative gap at which a backend may stop. Below every tie-break weight that a problem uses.
GAP = 1e-7


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: ``x`` is None when there is no vector, and ``reason`` then says why."""

    x: np.ndarray | None
    proven: bool
    reason: str = ""


class Backend(ABC):
    """Solves programs. The constructor raises when the solver is not installed or has no licence here."""

    name: str

    @abstractmethod
    def solve(self, program: MixedProgram, time_limit_s: float) -> Answer:
        """The best vector found within the limit. An error of the solver becomes an answer without a vector."""

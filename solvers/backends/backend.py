"""The interface of a solver backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from solvers.milp import MixedProgram

#: Relative gap at which a backend may stop. It is below every tie-break weight that a problem uses.
GAP = 1e-7


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a backend.

    Attributes:
        x: the solution vector; None when the backend found none.
        proven: whether ``x`` is proven optimal.
        reason: why there is no vector; empty when there is one.
    """

    x: np.ndarray | None
    proven: bool
    reason: str = ""


class Backend(ABC):
    """Solves programs. The constructor raises when the solver is not installed or has no licence here."""

    name: str

    @abstractmethod
    def solve(self, program: MixedProgram, time_limit_s: float) -> Answer:
        """Returns the best vector found within the limit. An error of the solver becomes an :class:`Answer` without a
        vector."""

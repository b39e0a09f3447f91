"""A trace on a pool of GPUs, as command lines name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simulator.arrivals import Arrivals, read_arrivals, resampled


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated, whatever the policies and the family are.

    Attributes:
        gpus: number of GPUs.
        slo_s: deadline, seconds; None: that of the family or the service.
        rate, redraw: see :func:`simulator.arrivals.resampled`.
        seed: of everything random.
    """

    trace: Path
    gpus: int = 16
    slo_s: float | None = None
    rate: float = 1.0
    redraw: int | None = None
    seed: int = 0

    def arrivals(self) -> Arrivals:
        """The arrivals of the trace.

        Raises:
            ConfigError: the file is invalid.
        """
        return resampled(read_arrivals(self.trace), self.rate, self.redraw)

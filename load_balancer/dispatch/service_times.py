"""How long a batch takes: the profile, corrected by what the workers report."""

from __future__ import annotations

from dataclasses import dataclass, field

from weir.core import LatencyProfile
from weir.profiles import Profile

#: Weight of a new observation. Small enough that one slow batch does not turn traffic away.
LEARNING_RATE = 0.2
#: Seconds without a batch after which a slow past is forgiven.
MEMORY_S = 30.0
#: A correction beyond this says more about a broken clock than about a device.
MOST_CORRECTION = 100.0
#: Smaller changes of a correction are errors of rounding.
_ROUNDING = 1e-9


@dataclass(slots=True)
class _Variant:
    """What is known of one variant.

    Attributes:
        fixed_s: seconds of an image beside its steps, which its work does not scale.
        correction: measured over profiled seconds; :attr:`prior` before anything was measured.
        highest: the largest correction since :meth:`ServiceTimes.settle`.
        table: profiled seconds by batch size, filled as far as it was asked for.
    """

    curve: LatencyProfile
    fixed_s: float
    prior: float
    correction: float
    highest: float
    heard_at: float = 0.0
    table: list[float] = field(default_factory=lambda: [0.0])

    def profiled(self, batch_size: int, work: float) -> float:
        table = self.table
        while len(table) <= batch_size:
            table.append(self.curve.at(len(table)))
        whole = table[batch_size]
        if work == 1.0:
            return whole
        fixed = min(whole, batch_size * self.fixed_s)
        return fixed + (whole - fixed) * work


class ServiceTimes:
    """Predicted seconds of a batch, by key of the variant.

    Without a profile nothing is known until the first reply: the prediction is 0 s, which admits everything, and from
    then on a batch costs in proportion to its size what the last replies cost.

    A variant that is predicted too slow for the deadline gets no image that could show that it is not. So what was
    learned of a stall is forgotten when no batch has come for a while, and the next image tries again.
    """

    def __init__(self, profile: Profile | None = None):
        self.stepwise = profile is not None and profile.stepwise
        self._variants: dict[str, _Variant] = {}
        if profile is not None:
            for key in profile.keys:
                variant = profile.variant(key)
                self._variants[key] = _Variant(variant.latency, variant.fixed_s, 1.0, 1.0, 1.0)
        #: Largest share by which a correction lies below its :attr:`_Variant.highest`.
        self.fallen = 0.0

    def seconds(self, variant: str, batch_size: int, work: float = 1.0) -> float:
        """Predicted seconds of one batch; ``work`` is its share of the variant's own number of steps.

        Where steps were measured, what an image costs beside them is not scaled by its work.
        """
        known = self._variants.get(variant) or self._unknown(variant)
        if work == 1.0 and batch_size < len(known.table):
            return known.table[batch_size] * known.correction
        return known.profiled(batch_size, work) * known.correction

    def whole(self, variant: str, batch_size: int, compute_s: float, work: float) -> float:
        """What a batch of the variant's own number of steps would have taken, from one of another."""
        if work == 1.0:
            return compute_s
        known = self._variants.get(variant) or self._unknown(variant)
        profiled = known.profiled(batch_size, work)
        return compute_s * known.profiled(batch_size, 1.0) / profiled if profiled > 0 else compute_s

    def observe(self, variant: str, batch_size: int, compute_s: float, work: float = 1.0, *, now: float) -> None:
        """Takes in the time that a batch really took."""
        known = self._variants.get(variant) or self._unknown(variant)
        known.heard_at = now
        expected = known.profiled(batch_size, work)
        if expected <= 0 or compute_s < 0:
            return
        ratio = min(compute_s / expected, MOST_CORRECTION)
        first = known.correction == 0.0 and known.prior == 0.0
        self._correct(known, ratio if first else known.correction + LEARNING_RATE * (ratio - known.correction))

    def forgive(self, now: float) -> None:
        """Corrections to the worse that no batch has confirmed for :data:`MEMORY_S` are dropped."""
        for known in self._variants.values():
            if now - known.heard_at > MEMORY_S and known.correction > known.prior:
                self._correct(known, known.prior)

    def settle(self) -> None:
        """:attr:`fallen` counts from the present corrections on."""
        for known in self._variants.values():
            known.highest = known.correction
        self.fallen = 0.0

    def _correct(self, known: _Variant, correction: float) -> None:
        if abs(correction - known.correction) < _ROUNDING:
            return
        known.correction = correction
        if correction >= known.highest:
            known.highest = correction
        else:
            self.fallen = max(self.fallen, 1 - correction / known.highest)

    def _unknown(self, variant: str) -> _Variant:
        known = self._variants[variant] = _Variant(LatencyProfile((1,), (1.0,)), 0.0, 0.0, 0.0, 0.0)
        return known

"""Predicted times of batches: the profile, corrected by the times that workers report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weir.core import ImageSize, LatencyProfile
from weir.profiles import Profile

if TYPE_CHECKING:
    from load_balancer.dispatch.finish_time import Kind

#: Weight of a new observation, small enough that one slow batch does not refuse traffic.
LEARNING_RATE = 0.2
#: Seconds without a batch after which corrections to slower times are dropped.
MEMORY_S = 30.0
#: Largest correction: a larger one means a broken clock rather than a slow device.
MOST_CORRECTION = 100.0
#: Number of sizes whose times are kept for each variant.
MOST_SIZES = 256
#: Smaller changes of a correction are rounding errors.
_ROUNDING = 1e-9


@dataclass(slots=True)
class _Times:
    """Profiled times of one variant at one size.

    Attributes:
        fixed_s: seconds of an image besides its steps, which do not scale with its number of steps.
        table: profiled seconds by batch size, filled on demand.
    """

    curve: LatencyProfile
    fixed_s: float = 0.0
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


@dataclass(slots=True)
class _Variant:
    """Times of one variant by size of the images (None: the family's own), and their correction.

    Attributes:
        correction: measured divided by profiled seconds, at all sizes; :attr:`prior` before anything was measured.
        highest: the largest correction since :meth:`ServiceTimes.settle`.
    """

    sizes: dict[ImageSize | None, _Times]
    prior: float
    correction: float
    highest: float
    heard_at: float = 0.0


class ServiceTimes:
    """Predicted seconds of a batch, by key of the variant and size of the images (None: the family's own).

    Without a profile the prediction is 0 s until the first reply, which admits everything. From then on it is
    proportional to the batch size and to the pixels, by the last replies.

    A variant that is predicted too slow for the deadline gets no images that could correct the prediction. So a
    correction to slower times is dropped when no batch has confirmed it for a while.
    """

    def __init__(self, profile: Profile | None = None, own: ImageSize | None = None):
        """
        Args:
            own: the family's own size, to which images are compared without a profile; None: all cost the same.
        """
        self._profile, self._own = None if profile is None else profile.measured_at(own), own
        self.stepwise = profile is not None and profile.stepwise
        self._variants: dict[str, _Variant] = {}
        if profile is not None:
            for key in profile.keys:
                variant = profile.variant(key)
                self._variants[key] = _Variant({None: _Times(variant.latency, variant.fixed_s)}, 1.0, 1.0, 1.0)
        #: Largest share by which any correction lies below its :attr:`_Variant.highest`.
        self.fallen = 0.0
        #: Number of changes of any correction.
        self.changes = 0

    def seconds(self, variant: str, batch_size: int, work: float = 1.0, size: ImageSize | None = None) -> float:
        """Predicted seconds of one batch; ``work`` is its share of the variant's own number of steps.

        With a profile of steps, the fixed cost of an image does not scale with its work.
        """
        known = self._variants.get(variant) or self._unknown(variant)
        times = known.sizes.get(size) or self._sized(known, variant, size)
        if work == 1.0 and batch_size < len(times.table):
            return times.table[batch_size] * known.correction
        return times.profiled(batch_size, work) * known.correction

    def run_s(self, kind: Kind) -> float:
        """Predicted seconds of an image of the kind alone."""
        return self.seconds(kind.variant, 1, kind.work, kind.size)

    def whole_s(self, kind: Kind, batch_size: int, device_s: float) -> float:
        """Seconds that a batch of the kind would have taken with the variant's own number of steps and the family's own
        size."""
        return self.whole(kind.variant, batch_size, device_s, kind.work, kind.size)

    def price(self, size: ImageSize | None, work: float = 1.0) -> float:
        """Cost of an image of a size as a multiple of one of the family's own (:meth:`weir.profiles.Profile.price`).

        Args:
            work: share of the last variant's own steps that run.
        """
        if size is None and work == 1.0:
            return 1.0
        if self._profile is None:
            return work * (1.0 if size is None else self._by_pixels(size))
        last = self._profile.keys[-1]
        known = self._variants[last]
        times = known.sizes.get(size) or self._sized(known, last, size)
        return times.profiled(1, work) / known.sizes[None].profiled(1, 1.0)

    def whole(
        self, variant: str, batch_size: int, compute_s: float, work: float, size: ImageSize | None = None
    ) -> float:
        """Seconds of a batch with the variant's own number of steps at the family's own size, from the time of one with
        the share ``work`` at another size."""
        if work == 1.0 and size is None:
            return compute_s
        known = self._variants.get(variant) or self._unknown(variant)
        times = known.sizes.get(size) or self._sized(known, variant, size)
        profiled = times.profiled(batch_size, work)
        return compute_s * known.sizes[None].profiled(batch_size, 1.0) / profiled if profiled > 0 else compute_s

    def observe(
        self,
        variant: str,
        batch_size: int,
        compute_s: float,
        work: float = 1.0,
        size: ImageSize | None = None,
        *,
        now: float,
    ) -> None:
        """Takes in the measured time of a batch."""
        known = self._variants.get(variant) or self._unknown(variant)
        times = known.sizes.get(size) or self._sized(known, variant, size)
        known.heard_at = now
        whole = work == 1.0 and batch_size < len(times.table)
        expected = times.table[batch_size] if whole else times.profiled(batch_size, work)
        if expected <= 0 or compute_s < 0:
            return
        ratio = min(compute_s / expected, MOST_CORRECTION)
        first = known.correction == 0.0 and known.prior == 0.0
        self._correct(known, ratio if first else known.correction + LEARNING_RATE * (ratio - known.correction))

    def forgive(self, now: float) -> None:
        """Drops corrections to slower times that no batch has confirmed for :data:`MEMORY_S`."""
        for known in self._variants.values():
            if now - known.heard_at > MEMORY_S and known.correction > known.prior:
                self._correct(known, known.prior)

    def settle(self) -> None:
        """Resets :attr:`fallen` to count from the present corrections."""
        for known in self._variants.values():
            known.highest = known.correction
        self.fallen = 0.0

    def _correct(self, known: _Variant, correction: float) -> None:
        if abs(correction - known.correction) < _ROUNDING:
            return
        known.correction = correction
        self.changes += 1
        if correction >= known.highest:
            known.highest = correction
        else:
            self.fallen = max(self.fallen, 1 - correction / known.highest)

    def _unknown(self, variant: str) -> _Variant:
        known = self._variants[variant] = _Variant({None: _Times(LatencyProfile((1,), (1.0,)))}, 0.0, 0.0, 0.0)
        return known

    def _sized(self, known: _Variant, variant: str, size: ImageSize | None) -> _Times:
        """Adds the times of a size; those that images no longer have are forgotten when there are many."""
        assert size is not None  # the family's own is always there
        if len(known.sizes) > MOST_SIZES:
            known.sizes = {None: known.sizes[None]}
        if self._profile is None:
            times = _Times(LatencyProfile((1,), (self._by_pixels(size),)))
        else:
            measured = self._profile.variant(variant, size)
            times = _Times(measured.latency, measured.fixed_s)
        known.sizes[size] = times
        return times

    def _by_pixels(self, size: ImageSize) -> float:
        return 1.0 if self._own is None else size.pixels / self._own.pixels

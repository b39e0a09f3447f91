"""The requests of a simulated run: when they come, and what the judges and the cache would say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.arrivals import Arrivals
from weir.core import NO_LOOKUP, CacheLookup, ImageSize


@dataclass(frozen=True, slots=True)
class RequestStream:
    """N requests, by number in the order of their arrival.

    Attributes:
        arrivals: when they come, and which prompt each has.
        confidences: by variant, the judge's confidence in the image of each request, [N]. The last variant's are those
            of its images from noise, where a service judges them; a variant that is missing is not judged.
        redrawn: confidences of the last variant's images from other noise, [R, N], in order; further ones start over.
        resumed: confidences of the last variant's images that resumed from the state of ``lookups``, [N]; empty: none
            is judged.
        lookups: what the cache answers to each request; empty: there is no cache.
        draws: what a plan leaves to chance, uniform in [0, 1), [N].
    """

    arrivals: Arrivals
    confidences: Mapping[str, np.ndarray]
    redrawn: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    resumed: np.ndarray = field(default_factory=lambda: np.empty(0))
    lookups: Sequence[CacheLookup] = ()
    draws: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        if not len(self.draws):
            object.__setattr__(self, "draws", np.random.default_rng(0).random(len(self.arrivals)))

    def __len__(self) -> int:
        return len(self.arrivals)

    def lookup(self, number: int) -> CacheLookup:
        """What the cache answers to a request."""
        return self.lookups[number] if self.lookups else NO_LOOKUP

    def size(self, number: int) -> ImageSize | None:
        """The size of the image of a request; None: the family's own."""
        return self.arrivals.sizes[number] if self.arrivals.sizes else None

    def confidence(self, number: int, variant: str, *, resumed_at: int = 0, redraw: int = 0) -> float | None:
        """The judge's confidence in an image of a request; None where nobody judges it.

        Args:
            resumed_at: K, where the image resumed from a stored state.
            redraw: which image from other noise it is; 0: the first.
        """
        if resumed_at:
            return float(self.resumed[number]) if len(self.resumed) else None
        if redraw and len(self.redrawn):
            return float(self.redrawn[(redraw - 1) % len(self.redrawn), number])
        found = self.confidences.get(variant)
        return None if found is None else float(found[number])

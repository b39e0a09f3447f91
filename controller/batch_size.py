"""Choice of the batch size of a replica under load."""

from __future__ import annotations

from weir.core import LatencyProfile


def best_batch(profile: LatencyProfile, limit_s: float) -> int:
    """Returns the batch size with the most images per second among those that take at most ``limit_s``; the smallest
    size when none does."""
    fitting = [b for b, s in zip(profile.batch_sizes, profile.latency_s, strict=True) if s <= limit_s]
    return max(fitting, key=lambda b: b / profile.at(b), default=profile.batch_sizes[0])

"""Weir's own policies: cascades, ladders of variants, and approximation levels."""

"""Decisions of the cache: which states are kept, reused and evicted. Pure."""

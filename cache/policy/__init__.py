"""Decisions of the cache: what is cached, what may be reused, and what is evicted. Pure."""

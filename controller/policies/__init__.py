"""Weir's own policies."""

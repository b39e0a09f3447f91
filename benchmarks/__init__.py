"""Measurements, each a command of its own: ``python -m benchmarks.NAME``."""

import os

# Ray reads it as it is imported, which some of these do before they make their cluster.
os.environ.setdefault("RAY_AUTH_MODE", "token")

"""Benchmarks, one command each: ``python -m benchmarks.NAME``."""

import os

# Ray reads this variable on import, which some benchmarks do before they start their cluster.
os.environ.setdefault("RAY_AUTH_MODE", "token")

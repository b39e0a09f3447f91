"""What every test shares: examples that hypothesis draws may take their time, and Ray asks for its token."""

from __future__ import annotations

import gc
import os
import warnings

from hypothesis import settings

#: Ray reads it as it is imported, which some tests do before they make their cluster.
os.environ.setdefault("RAY_AUTH_MODE", "token")

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_sessionfinish() -> None:
    """Collects the subprocesses and sockets that Ray leaves to the garbage collector, before pytest does: for pytest
    each warning of one is an error, of no test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

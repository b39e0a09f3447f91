"""What every test shares: examples that hypothesis draws may take their time, and Ray asks for its token."""

from __future__ import annotations

import os

from hypothesis import settings

#: Ray reads it as it is imported, which some tests do before they make their cluster.
os.environ.setdefault("RAY_AUTH_MODE", "token")

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

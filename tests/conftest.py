"""What every test shares: examples that hypothesis draws may take their time, and Ray asks for its token."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from cache.store.redis_server import RedisServer

#: Ray reads it as it is imported, which some tests do before they make their cluster.
os.environ.setdefault("RAY_AUTH_MODE", "token")

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis server of a test's own."""
    from cache.store.redis_server import RedisServer  # imported here, because most tests have no Redis

    running = RedisServer.start()
    yield running
    running.stop()


#: Exit code of the run.
STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Collects the subprocesses and sockets that Ray leaves to the garbage collector, before pytest does: for pytest
    each warning of one is an error, of no test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends a process that has used Ray without taking the interpreter down, when all results are printed: threads of
    Ray's core may still run then, and on a busy machine one of them ended the process with a segmentation fault after
    all tests had passed."""
    if "ray._raylet" in sys.modules and STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[STATUS])

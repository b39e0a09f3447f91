"""Fixtures: a Redis server for each test that uses one, and states and requests to store."""

from collections.abc import Iterator

import numpy as np
import pytest

from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import SealedStore
from weir.core import ImageRequest, ImageSize
from weir.states import State

SECRET = b"a secret of the tests"
PARTITION = "acme|model@local|ddim|64x64|50|3|-|fp16|clip-1"


@pytest.fixture
def backend(server: RedisServer) -> Iterator[RedisBackend]:
    # Longer than what serving waits: a laptop under tests may stall, and only faults are to be counted as such.
    connected = RedisBackend(server.url, read_s=0.5, write_s=0.5, breaker=(3, 0.2))
    yield connected
    connected.close()


@pytest.fixture
def store(backend: RedisBackend) -> SealedStore:
    return SealedStore(backend, SECRET)


def state(step: int = 10, seed: int = 0, model: str = "heavy-1") -> State:
    latent = np.random.default_rng(seed).normal(size=(4, 16, 16)).astype(np.float16)
    return State(latent, step, 50, "DDIM-v_prediction-1", model)


def request(name: str = "a", partition: str = PARTITION) -> ImageRequest:
    return ImageRequest(name, "a red circle", 1, ImageSize(64, 64), float("inf"), capture=partition)

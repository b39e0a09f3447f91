"""The running cache predicts levels by the current head file."""

from __future__ import annotations

import asyncio

import numpy as np

from cache.service import CacheService
from testing.toy_family import FAMILY, LEVELS
from weir.config import CacheConfig
from weir.prompt_levels import LevelHead


def head(cut: float) -> LevelHead:
    """A head that predicts the same level for every prompt."""
    about = LEVELS.model_copy(update={"encoder": "words-1024", "family": "toy"})
    return LevelHead(np.zeros(1024), np.array([cut]), about)


async def test_a_replaced_head_file_is_loaded_by_the_next_health_check(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIR_CACHE_URL", server.url)
    monkeypatch.setenv("WEIR_CACHE_SECRET", "a secret of the tests")
    file = tmp_path / "head.safetensors"
    head(1.0).save(file)
    config = CacheConfig(mode="read", encoder="words", levels=str(file))
    service = CacheService(config.model_dump(), FAMILY)
    while not service.ready:
        await asyncio.sleep(0.01)

    async def level() -> int | None:
        found = await service.lookup("a", "acme", "a red circle", {"size": "64x64"})
        return found["prompt_class"]

    assert await level() == 0
    head(-1.0).publish(file)
    await service.check_health()
    assert await level() == 1

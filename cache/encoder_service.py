"""Processes that encode prompts for the cache, as a Serve deployment with any number of replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from cache.encoder import family_encoder
from cache.lookup_batcher import LookupBatcher, Query
from cache.policy.partition import Settings
from weir import tracing
from weir.config import CacheConfig, FamilyConfig
from weir.logs import configure
from weir.loopback import keep_to_loopback
from weir.telemetry import RayMetrics


class EncoderService:
    """Answers lookups: encodes the prompts, and asks the cache for a whole batch with one call.

    Every replica can answer every lookup. The loss of one costs the lookups that it had, which are misses.

    Args:
        config, family: as of :class:`cache.service.CacheService`.
        cache: handle of its deployment.

    Raises:
        ConfigError: the encoder cannot be loaded.
    """

    def __init__(self, config: dict[str, Any], family: dict[str, Any], cache: DeploymentHandle):
        import torch

        keep_to_loopback()
        configure("cache-encoder")
        tracing.configure("cache-encoder")
        torch.set_num_threads(1)
        settings = CacheConfig.model_validate(config)
        encoder = family_encoder(FamilyConfig.model_validate(family), settings.encoder)

        async def search(queries: Sequence[Query], vectors: np.ndarray) -> list[dict[str, Any] | None]:
            found: list[dict[str, Any] | None] = await cache.search.remote(queries, vectors, encoder.version)
            return found

        self._batcher = LookupBatcher(encoder, search, settings.lookup_s, RayMetrics())

    async def lookup(
        self,
        name: str,
        tenant: str,
        prompt: str,
        settings: dict[str, Any],
        request_id: str = "",
        traceparent: str = "",
    ) -> dict[str, Any]:
        """As :meth:`cache.service.CacheService.lookup`."""
        return await self._batcher.lookup(
            Query(name, tenant, prompt, Settings.from_dict(settings), request_id), traceparent
        )

"""From a configuration to a store and a cache: where the server is, and who may write to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cache.cache import ApproximateCache, Judge
from cache.encoder import family_encoder
from cache.index import VectorIndex
from cache.policy.catalog import Catalog, Insert, Rules
from cache.policy.eviction import eviction_policy
from cache.policy.partition import Partitions
from cache.policy.predictor import MatchPredictor
from cache.policy.selector import PUBLISHED, By, load_selector
from cache.store.backend import Backend
from cache.store.redis_backend import RedisBackend
from cache.store.store import SealedStore
from weir.config import CacheConfig, FamilyConfig
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead
from weir.telemetry import Metrics

URL, SECRET = "WEIR_CACHE_URL", "WEIR_CACHE_SECRET"
#: Loads who judges a family's pictures; None where nobody does.
LoadJudge: TypeAlias = Callable[[FamilyConfig], Judge | None]


def connected(config: CacheConfig, *, patience_s: float | None = None) -> RedisBackend:
    """The backend of a configuration; nothing is asked of it yet.

    Args:
        patience_s: longest wait for any answer where no request waits for it; None: what a request's path allows.

    Raises:
        ConfigError: no server is named, or its URL is wrong.
    """
    url = config.url or os.environ.get(URL)
    if url is None:
        raise ConfigError(f"cache.url names no Redis, and the environment has no {URL}; give one of them")
    if config.tls_ca is not None and not Path(config.tls_ca).is_file():
        raise ConfigError(f"cache.tls_ca: there is no file {config.tls_ca}")
    if patience_s is not None:
        return RedisBackend(url, read_s=patience_s, write_s=patience_s, tls_ca=config.tls_ca)
    return RedisBackend(url, read_s=config.fetch_s, tls_ca=config.tls_ca)


def secrets(config: CacheConfig, default: str = "") -> list[bytes]:
    """The secrets of the integrity tags, one a line: the first seals, all of them open.

    Args:
        default: where neither the configuration nor the environment has one.

    To replace a secret, put the new one above it, restart, and delete the old line once its states have been evicted.

    Raises:
        ConfigError: there is none, or it is too short to keep anybody out.
    """
    if config.secret_file is not None:
        try:
            text = Path(config.secret_file).read_bytes()
        except OSError as error:
            raise ConfigError(f"cache.secret_file: {config.secret_file} cannot be read: {error.strerror}") from None
    else:
        text = os.environ.get(SECRET, default).encode()
    found = [line.strip() for line in text.splitlines() if line.strip()] or [b""]
    shortest = min(map(len, found))
    if shortest < 16:
        raise ConfigError(
            f"a secret of the cache has {shortest} bytes, and needs at least 16; give it in cache.secret_file or "
            f"{SECRET}, e.g. the output of `openssl rand -hex 32`"
        )
    return found


def open_store(config: CacheConfig, backend: Backend | None = None, *, metrics: Metrics | None = None) -> SealedStore:
    """The store that workers fetch from and write to; call it in the process that uses it.

    Raises:
        ConfigError: names the key and the remedy.
    """
    backend = backend or connected(config)
    first, *retired = secrets(config)
    return SealedStore(backend, first, config.compression, retired, metrics)


def open_cache(
    config: CacheConfig,
    family: FamilyConfig,
    store: SealedStore | None = None,
    judge: LoadJudge | None = None,
) -> ApproximateCache:
    """The cache of a family over a store, empty until :meth:`ApproximateCache.rebuild`.

    Args:
        judge: loads who judges the family's pictures, where the selector goes by confidence.

    Raises:
        ConfigError: names the key and the remedy.
    """
    store = store or open_store(config)
    encoder = family_encoder(family, config.encoder)
    rules = Rules(load_selector(config.selector), Insert(config.insert), config.candidates)
    measured_on = _encoder_of(config.selector)
    if rules.selector.by is By.SIMILARITY and measured_on not in (None, encoder.version):
        raise ConfigError(
            f"cache.selector: {config.selector} was measured on similarities of the encoder {measured_on}, and the "
            f"cache's is {encoder.version}; measure one for it with `weir cache profile`, or set cache.encoder"
        )
    judged = None
    if rules.selector.by is By.CONFIDENCE:
        if judge is None or family.discriminator is None:
            raise ConfigError(
                f"cache.selector: {config.selector} goes by a discriminator's confidence, and family {family.name} "
                "brings none; choose one by similarity"
            )
        judged = judge(family)
    budget = config.budget_mib * 2**20
    policy = eviction_policy(config.eviction, after_hits=rules.insert is Insert.ALL)
    ledger = Catalog(rules, policy, budget, lambda: VectorIndex(encoder.dim))
    predictor = None if config.predictor is None else MatchPredictor.load(Path(config.predictor), encoder.version)
    levels = None
    if config.levels is not None:
        levels = LevelHead.load(Path(config.levels), encoder=encoder.version, steps=family.heavy.steps)
    partitions = Partitions(family, encoder.version)
    return ApproximateCache(
        encoder,
        partitions,
        ledger,
        store,
        steps=family.heavy.steps,
        predictor=predictor,
        levels=levels,
        judge=judged,
    )


def _encoder_of(selector: str) -> str | None:
    """The encoder of a profile that :func:`load_selector` has read; None for published thresholds, and where it is not
    said."""
    return None if selector in PUBLISHED else json.loads(Path(selector).read_text()).get("encoder")

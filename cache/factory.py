"""Creates the store and the cache of a configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cache.cache import ApproximateCache, Judge, PromptModels
from cache.encoder import Encoder
from cache.index import VectorIndex
from cache.policy.catalog import Catalog, Insert, Rules
from cache.policy.eviction import eviction_policy
from cache.policy.partition import Partitions
from cache.policy.predictor import MatchPredictor
from cache.policy.selector import PUBLISHED, By, load_selector
from cache.store.backend import Backend, StoreFailed
from cache.store.redis_backend import RedisBackend
from cache.store.store import SealedStore
from weir.config import CacheConfig, FamilyConfig
from weir.errors import ConfigError
from weir.json_files import read_json
from weir.own_code import is_own, own
from weir.prompt_levels import LevelHead
from weir.telemetry import Metrics

URL, SECRET = "WEIR_CACHE_URL", "WEIR_CACHE_SECRET"
#: Timeout of each response of a Redis that is checked before use, seconds.
CHECK_S = 5.0
#: Loads the judge of a family's images; None for a family without one.
LoadJudge: TypeAlias = Callable[[FamilyConfig], object]


def connected(config: CacheConfig, *, patience_s: float | None = None) -> RedisBackend:
    """Creates the Redis backend of a configuration, without connecting.

    Args:
        patience_s: time limit of every call, for administration; None: the limits of the request path.

    Raises:
        ConfigError: no server is configured, or its URL is invalid.
    """
    url = config.url or os.environ.get(URL)
    if url is None:
        raise ConfigError(f"cache.url names no Redis, and the environment has no {URL}; set one of them")
    if config.tls_ca is not None and not os.path.isfile(config.tls_ca):
        raise ConfigError(f"cache.tls_ca: there is no file {config.tls_ca}")
    if patience_s is not None:
        return RedisBackend(url, read_s=patience_s, write_s=patience_s, tls_ca=config.tls_ca)
    return RedisBackend(url, read_s=config.fetch_s, tls_ca=config.tls_ca)


def check_choices(config: CacheConfig) -> None:
    """Checks the names that a configuration chooses by: the selector, the eviction policy, and an encoder of the user's
    own.

    Raises:
        ConfigError: a name is unknown, or cannot be imported.
    """
    try:
        load_selector(config.selector)
    except ConfigError as error:
        raise ConfigError(f"cache.selector: {error.message}") from None
    eviction_policy(config.eviction)
    if config.encoder is not None and is_own(config.encoder):
        own(config.encoder, "cache.encoder")


def check_redis(config: CacheConfig) -> str | None:
    """Checks the Redis that the configuration or the environment names, if the cache is on.

    Returns:
        A sentence if the server does not answer, because the cache is optional; otherwise None.

    Raises:
        ConfigError: the server is unsuitable.
    """
    if config.mode == "off" or not (config.url or URL in os.environ):
        return None
    backend = connected(config, patience_s=CHECK_S)
    try:
        backend.check(writing=config.mode == "read-write")
    except StoreFailed as error:
        return f"nothing is cached until Redis answers: {error.message}"
    finally:
        backend.close()
    return None


def secrets(config: CacheConfig, default: str = "") -> list[bytes]:
    """Reads the secrets of the integrity tags, one on each line: the first one seals, all of them verify.

    Args:
        default: used if neither the configuration nor the environment has one.

    To replace a secret, add the new one above it, restart, and delete the old line once its states have been evicted.

    Raises:
        ConfigError: there is none, or one is too short to be safe.
    """
    if config.secret_file is not None:
        try:
            text = Path(config.secret_file).read_bytes()
        except OSError as error:
            raise ConfigError(f"cache.secret_file: the file that it names cannot be read: {error.strerror}") from None
    else:
        text = os.environ.get(SECRET, default).encode()
    found = [line.strip() for line in text.splitlines() if line.strip()]
    shortest = min(map(len, found), default=0)
    if shortest < 16:
        problem = f"a secret of the cache has {shortest} bytes" if found else "the cache has no secret for its tags"
        raise ConfigError(
            f"{problem}; set one of at least 16 bytes in cache.secret_file, --secret-file or {SECRET}, e.g. "
            "the output of `openssl rand -hex 32`"
        )
    return found


def open_store(config: CacheConfig, backend: Backend | None = None, *, metrics: Metrics | None = None) -> SealedStore:
    """Opens the store that workers fetch from and write to; to be called in the process that uses it.

    Raises:
        ConfigError: the configuration is invalid; the message names the key and the remedy.
    """
    backend = backend or connected(config)
    first, *retired = secrets(config)
    return SealedStore(backend, first, config.compression, retired, metrics)


def open_cache(
    config: CacheConfig,
    family: FamilyConfig,
    encoder: Encoder,
    store: SealedStore,
    judge: LoadJudge | None = None,
) -> ApproximateCache:
    """Creates the cache of a family on a store; it is empty until :meth:`ApproximateCache.rebuild`.

    Args:
        encoder: encoder of the prompts; the cache has its version and width, and does not keep it.
        judge: loads the judge of the family's images, for selectors by confidence.

    Raises:
        ConfigError: the configuration is invalid; the message names the key and the remedy.
    """
    rules = Rules(load_selector(config.selector), Insert(config.insert), config.candidates)
    measured_on = _encoder_of(config.selector)
    if rules.selector.by is By.SIMILARITY and measured_on not in (None, encoder.version):
        raise ConfigError(
            f"cache.selector: {config.selector} was measured on similarities of the encoder {measured_on}, and the "
            f"cache's is {encoder.version}; measure one for it with `weir cache profile`, or set cache.encoder"
        )
    judged: Judge | None = None
    if rules.selector.by is By.CONFIDENCE:
        if judge is None or family.discriminator is None:
            raise ConfigError(
                f"cache.selector: {config.selector} uses a discriminator's confidence, and family {family.name} "
                "has no discriminator; choose a selector by similarity"
            )
        found = judge(family)
        if not isinstance(found, Judge):
            raise ConfigError(
                f"cache.selector: {config.selector} needs a discriminator that reads stored features (version, see and "
                f"weigh), and {family.discriminator} does not; choose a selector by similarity"
            )
        judged = found
    budget = config.budget_mib * 2**20
    policy = eviction_policy(config.eviction, after_hits=rules.insert is Insert.ALL)
    catalog = Catalog(rules, policy, budget, partial(VectorIndex, encoder.dim))
    predictor = None if config.predictor is None else MatchPredictor.load(Path(config.predictor), encoder.version)
    levels = None
    if config.levels is not None:
        levels = LevelHead.load(Path(config.levels), encoder=encoder.version, steps=family.heavy.steps)
    return ApproximateCache(
        Partitions(family, encoder.version),
        catalog,
        store,
        dim=encoder.dim,
        steps=family.heavy.steps,
        models=PromptModels(predictor, levels, judged),
    )


def _encoder_of(selector: str) -> str | None:
    """The encoder of a profile that :func:`load_selector` has read; None for published thresholds, and if the profile
    does not name one."""
    return None if selector in PUBLISHED else read_json(Path(selector)).get("encoder")

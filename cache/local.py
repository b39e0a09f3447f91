"""The cache of ``weir generate --cache``: in this process, and in a file between runs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Protocol

from cache.encoder import family_encoder
from cache.factory import LoadJudge, open_cache
from cache.policy.partition import Settings
from cache.store.backend import MemoryBackend
from cache.store.maintenance import export_store, import_store
from cache.store.store import SealedStore
from weir.config import CacheConfig, FamilyConfig
from weir.core import CacheLookup, ImageRequest
from weir.errors import ConfigError
from weir.files import check_place
from weir.states import State

#: Tenant of images that are generated without a service.
TENANT = "local"


class Run(Protocol):
    """What the cache needs of a finished run of the last variant; :class:`workers.engine.engine.EngineOutput` has
    it."""

    @property
    def first(self) -> int: ...

    @property
    def states(self) -> tuple[State, ...]: ...

    @property
    def seen(self) -> bytes | None: ...


class LocalCache:
    """A cache whose index, catalog and states are in memory, and which is saved in the format of ``weir cache export``.

    The secret of its tags is in a file next to it that only the owner can read, because readers of the secret can write
    states.
    """

    def __init__(
        self,
        config: CacheConfig,
        family: FamilyConfig,
        path: Path,
        judge: LoadJudge | None = None,
    ):
        """Reads the file if it exists.

        Args:
            judge: see :func:`cache.factory.open_cache`.

        Raises:
            ConfigError: the file or its secret cannot be read or written, or has another format.
        """
        check_place(path)
        self._path = path
        self._store = SealedStore(MemoryBackend(), _secret(path.with_name(path.name + ".secret")), config.compression)
        if path.exists():
            import_store(self._store, path)
        self._encoder = family_encoder(family, config.encoder)
        self._cache = open_cache(config, family, self._encoder, self._store, judge)
        self._cache.rebuild()

    def lookup(self, request: ImageRequest) -> CacheLookup:
        """Looks a request up; :meth:`finished` has to follow."""
        own = request.overrides
        how = own.steps, own.guidance, request.negative_prompt, own.sampler, request.prompt_syntax, request.adapters
        settings = Settings(request.size, *how)
        [vector] = self._encoder.encode([request.prompt])
        return self._cache.lookup(request.id, TENANT, request.prompt, settings, vector)

    def state(self, key: str) -> State | None:
        """The state of a :class:`weir.core.Resume`; None if it is missing."""
        return self._store.get(key)

    def finished(self, request: ImageRequest, run: Run | None, sought: int = 0, refused: bool = False) -> None:
        """Ends a request, and inserts the states that its run captured.

        Args:
            request: the request of the run, with the partition of its captured states.
            run: the last run of the last variant; None: there was none.
            sought: K of the state that it was to resume from; 0: none.
            refused: that state does not fit the weights, and is removed.
        """
        if run is None:
            self._cache.finish(request.id, sought=sought, refused=refused)
            return
        self._store.put(request, run.states)
        captured = () if request.capture is None else tuple(state.step for state in run.states)
        self._cache.finish(request.id, run.first, captured, sought, run.seen, refused)

    def save(self) -> None:
        """Writes the file atomically.

        Raises:
            ConfigError: it cannot be written.
        """
        export_store(self._store, self._path)


def _secret(path: Path) -> bytes:
    """Reads the secret; creates one the first time.

    Raises:
        ConfigError: it cannot be read or written, or is too short.
    """
    try:
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
        found = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: the cache's secret cannot be read or written: {error.strerror}") from None
    if len(found) < 16:
        raise ConfigError(f"{path}: not the secret of a cache; delete it together with the file of the cache")
    return found

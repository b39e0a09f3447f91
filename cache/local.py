"""The cache in this process, kept in a file between runs: what ``weir generate --cache`` uses."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Protocol

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

#: Owner of what is generated on this machine without a service.
TENANT = "local"


class Run(Protocol):
    """What the cache needs of a finished run of the last variant (:class:`workers.engine.engine.EngineOutput`)."""

    @property
    def first(self) -> int: ...

    @property
    def states(self) -> tuple[State, ...]: ...

    @property
    def seen(self) -> bytes | None: ...


class LocalCache:
    """Index, ledger and states in memory; the file is what ``weir cache export`` writes.

    The secret of its tags lies beside the file, readable by its owner alone: who can read both can write states.
    """

    def __init__(
        self,
        config: CacheConfig,
        family: FamilyConfig,
        path: Path,
        judge: LoadJudge | None = None,
    ):
        """Reads the file where there is one.

        Args:
            judge: as :func:`cache.factory.open_cache` has it.

        Raises:
            ConfigError: the file or its secret cannot be read or written, or is something else.
        """
        check_place(path)
        self._path = path
        self._store = SealedStore(MemoryBackend(), _secret(path.with_name(path.name + ".secret")), config.compression)
        if path.exists():
            import_store(self._store, path)
        self._cache = open_cache(config, family, self._store, judge)
        self._cache.rebuild()

    def lookup(self, request: ImageRequest) -> CacheLookup:
        """What the cache has for a request; :meth:`finished` has to follow."""
        own = request.overrides
        settings = Settings(request.width, request.height, own.steps, own.guidance, request.negative_prompt)
        return self._cache.lookup(request.id, TENANT, request.prompt, settings)

    def state(self, key: str) -> State | None:
        """The state of a :class:`weir.core.Resume`; None where it is not there (any more)."""
        return self._store.get(key)

    def finished(self, request: ImageRequest, run: Run | None, sought: int = 0, refused: bool = False) -> None:
        """Keeps the states that a run passed.

        Args:
            request: as it was run, with the partition that its states are captured in.
            run: the last one of the last variant; None: there was none.
            sought: K of the state that it should have resumed from; 0: none.
            refused: that state does not fit the weights that are here, and goes.
        """
        if run is None:
            self._cache.finish(request.id, sought=sought, refused=refused)
            return
        self._store.put(request, run.states)
        captured = () if request.capture is None else tuple(state.step for state in run.states)
        self._cache.finish(request.id, run.first, captured, sought, run.seen, refused)

    def save(self) -> None:
        """Writes the file whole or not at all.

        Raises:
            ConfigError: it cannot be written.
        """
        export_store(self._store, self._path)


def _secret(path: Path) -> bytes:
    """The secret that lies there; a new one the first time.

    Raises:
        ConfigError: it cannot be read or written, or is too short.
    """
    try:
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
        found = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: the cache's secret cannot be kept there: {error.strerror}") from None
    if len(found) < 16:
        raise ConfigError(f"{path}: not the secret of a cache; delete it together with the cache's file")
    return found

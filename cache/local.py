"""The cache in this process, kept in a file between runs: what ``weir generate --cache`` draws with."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cache.factory import LoadJudge, open_cache
from cache.policy.partition import Settings
from cache.store.backend import MemoryBackend
from cache.store.maintenance import export_store, import_store
from cache.store.store import SealedStore
from weir.config import CacheConfig, FamilyConfig
from weir.core import ImageRequest
from weir.errors import ConfigError
from weir.files import check_place
from weir.states import State

#: Whoever draws on this machine without a service.
TENANT = "local"


class Run(Protocol):
    """What the cache needs of a finished heavy run (:class:`workers.engine.engine.EngineOutput`)."""

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

    def find(self, request: ImageRequest) -> tuple[ImageRequest, State | None]:
        """The request for the heavy variant, and the state that it resumes from; :meth:`finished` has to follow."""
        settings = Settings(request.width, request.height, request.steps, request.guidance, request.negative_prompt)
        found = self._cache.lookup(request.id, TENANT, request.prompt, settings)
        state = None if found.key is None else self._store.get(found.key)
        return (
            replace(
                request,
                resume_key=found.key,
                resume_step=found.k,
                resume_stride=found.stride,
                accept=found.accept,
                capture=found.capture,
                cache_partition=found.partition,
            ),
            state,
        )

    def finished(self, request: ImageRequest, run: Run | None, sought: bool = True, refused: bool = False) -> None:
        """Keeps what a heavy run passed; None: there was none.

        Args:
            sought: a run that did not resume should have.
            refused: the state that was found does not fit the weights that are here, and goes.
        """
        if run is None:
            self._cache.finish(request.id, sought=False, refused=refused)
            return
        self._store.put(request, run.states)
        captured = tuple(state.step for state in run.states)
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

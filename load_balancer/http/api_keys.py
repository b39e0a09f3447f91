"""API keys: bearer keys, of which only digests are kept, and the callers that they identify.

Without a keys file every client is the anonymous caller of the tenant ``public``.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from weir.config import KeyConfig, KeysConfig, load_keys
from weir.errors import ConfigError, Unauthorized
from weir.files import make_folder, written_whole
from weir.moderation import Moderation

log = logging.getLogger(__name__)

#: Seconds between two checks of the keys file for changes.
RELOAD_S = 1.0

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, and what its key allows."""

    name: str
    tenant: str
    priority: Priority = "interactive"
    images_per_minute: float | None = None
    concurrent_images: int | None = None
    moderation: Moderation = "off"
    admin: bool = False

    @classmethod
    def of(cls, key: KeyConfig, moderation: Moderation = "off") -> Caller:
        """The caller with this key.

        Args:
            moderation: of keys that name none.
        """
        fields = key.model_dump(exclude={"sha256"})
        return cls(**{**fields, "moderation": key.moderation or moderation})


#: The caller of every request where no keys are configured.
ANONYMOUS = Caller("anonymous", "public")


def digest(key: str) -> str:
    """The digest of a key, as the keys file has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A new key of 256 random bits. Scanners for leaked secrets find it by its prefix."""
    return f"weir-{secrets.token_urlsafe(32)}"


class ApiKeys:
    """The keys of a service, and the callers that they identify.

    Args:
        path: keys file, read again when it has changed, so that a key can be revoked while the service runs; None: no
            key is needed. An invalid change is logged, and the keys stay as they were.
        open_admin: without a keys file, whether every client has the admin scope.
        moderation: of keys that name none, and of all clients without a keys file.

    Raises:
        ConfigError: the file is invalid.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        open_admin: bool = False,
        moderation: Moderation = "off",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path = None if path is None else Path(path)
        self._clock = clock
        self._moderation = moderation
        self._anonymous = replace(ANONYMOUS, moderation=moderation, admin=open_admin)
        self._callers: list[tuple[bytes, Caller]] = []
        self._stamp: tuple[int, int] | None = None
        self._look_again_at = 0.0
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._take(load_keys(self._path))
            self._look_again_at = clock() + RELOAD_S

    def identify(self, authorization: str | None) -> Caller:
        """Returns the caller of an ``Authorization`` header.

        The digest is compared with every known one in constant time, without an early exit, so that the time taken
        reveals nothing about any key.

        Raises:
            Unauthorized: the key is missing or unknown. The message does not contain it.
        """
        if self._path is None:
            return self._anonymous
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("this service needs a key; send it as `Authorization: Bearer KEY`")
        given = bytes.fromhex(digest(key.strip()))
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(given, known):
                found = caller
        if found is None:
            raise Unauthorized("the key is unknown; the operator of the service creates keys with `weir keys new`")
        return found

    def _take(self, keys: KeysConfig) -> None:
        self._callers = [(bytes.fromhex(key.sha256), Caller.of(key, self._moderation)) for key in keys.keys]

    def _reload(self) -> None:
        now = self._clock()
        if self._path is None or now < self._look_again_at:
            return
        self._look_again_at = now + RELOAD_S
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._take(load_keys(self._path))
                self._stamp = stamp
                log.info("read %d keys", len(self._callers))
        except ConfigError as error:
            log.warning("kept the keys as they were: %s", error.message)


def append_key(path: Path, key: KeyConfig) -> None:
    """Adds an entry to a keys file; creates the file, readable by its owner only, if there is none.

    The file is replaced atomically: a service that reads it sees the old keys or the new ones.

    Raises:
        ConfigError: the file is invalid or cannot be written, or has a key of this name already.
    """
    import yaml

    known = load_keys(path).keys if path.exists() else ()
    if key.name in {it.name for it in known}:
        raise ConfigError(
            f"{path}: there is a key {key.name} already; revoke it by deleting its entry, or choose another name"
        )
    fields = {"keys": [it.model_dump(exclude_defaults=True) for it in (*known, key)]}
    make_folder(path.parent)
    with written_whole(path) as draft:
        draft.touch(mode=0o600)
        draft.write_text(yaml.safe_dump(fields, sort_keys=False))


def _stamp(path: Path) -> tuple[int, int]:
    """A value that changes when the file does.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_ino

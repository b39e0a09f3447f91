"""Who calls: bearer keys, of which only digests are kept, and what their holders may do.

Without a keys file everybody is the anonymous caller of the tenant ``public``.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weir.config import KeyConfig, KeysConfig, load_keys
from weir.errors import ConfigError, Unauthorized
from weir.files import make_folder, written_whole

log = logging.getLogger(__name__)

#: A changed keys file is noticed within so many seconds.
RELOAD_S = 1.0

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request, and what its key allows."""

    name: str
    tenant: str
    priority: Priority = "interactive"
    images_per_minute: float | None = None
    concurrent_images: int | None = None
    admin: bool = False

    @classmethod
    def of(cls, key: KeyConfig) -> Caller:
        return cls(**key.model_dump(exclude={"sha256"}))


#: Everybody, where no keys are configured.
ANONYMOUS = Caller("anonymous", "public")


def digest(key: str) -> str:
    """What the keys file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """256 random bits. The prefix lets scanners for leaked secrets find it."""
    return f"weir-{secrets.token_urlsafe(32)}"


class ApiKeys:
    """Everybody who may call.

    Args:
        path: keys file, read again when it has changed, so that a key can be revoked while the service runs; None lets
            everybody in. A file that turns bad changes nothing and is logged.
        open_admin: without a keys file, whether everybody has the admin scope.

    Raises:
        ConfigError: the file is wrong.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        open_admin: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path = None if path is None else Path(path)
        self._clock = clock
        self._anonymous = Caller(ANONYMOUS.name, ANONYMOUS.tenant, admin=open_admin)
        self._callers: list[tuple[bytes, Caller]] = []
        self._stamp: tuple[int, int] | None = None
        self._look_again_at = 0.0
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._take(load_keys(self._path))
            self._look_again_at = clock() + RELOAD_S

    def identify(self, authorization: str | None) -> Caller:
        """The caller behind an ``Authorization`` header.

        The digest is compared with every known one in constant time, and to the end, so that the time taken says
        nothing about any key.

        Raises:
            Unauthorized: there is no key, or it is not known. The message does not repeat it.
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
            raise Unauthorized("the key is not known here; whoever runs the service makes one with `weir keys new`")
        return found

    def _take(self, keys: KeysConfig) -> None:
        self._callers = [(bytes.fromhex(key.sha256), Caller.of(key)) for key in keys.keys]

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
                log.info("%d keys are known", len(self._callers))
        except ConfigError as error:
            log.warning("kept the keys that were known: %s", error.message)


def append_key(path: Path, key: KeyConfig) -> None:
    """Adds an entry to a keys file, which only its owner may read, and makes the file where there is none.

    The file is replaced in one step: a service that reads it sees the old keys or the new ones.

    Raises:
        ConfigError: the file is wrong, cannot be written, or knows the name already.
    """
    import yaml

    known = load_keys(path).keys if path.exists() else ()
    if key.name in {it.name for it in known}:
        raise ConfigError(
            f"{path}: there is a key {key.name} already; revoke it by deleting its entry, or name another"
        )
    fields = {"keys": [it.model_dump(exclude_defaults=True) for it in (*known, key)]}
    make_folder(path.parent)
    with written_whole(path) as draft:
        draft.touch(mode=0o600)
        draft.write_text(yaml.safe_dump(fields, sort_keys=False))


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_ino

"""Reads the request headers ``Prefer`` (asynchronous answers) and ``Idempotency-Key``. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from load_balancer.http.api_keys import Caller
from weir.errors import InvalidRequest

MOST_KEY_CHARACTERS = 255
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Later:
    """A client's preference for ``202 Accepted`` over waiting (RFC 7240): at once, or after ``wait_s`` seconds."""

    wait_s: float = 0.0


def later(prefer: list[str]) -> Later | None:
    """Reads ``Prefer`` headers; unknown preferences are ignored, as the RFC requires."""
    preferences: dict[str, str] = {}
    for preference in ",".join(prefer).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        preferences.setdefault(name.strip().lower(), value.strip().strip('"'))
    if "respond-async" not in preferences:
        return None
    wait = preferences.get("wait", "")
    return Later(float(wait) if wait.isascii() and wait.isdigit() and len(wait) <= 5 else 0.0)


def idempotency_key(given: str | None) -> str | None:
    """Checks an ``Idempotency-Key``.

    Raises:
        InvalidRequest: the key is too long, or not printable ASCII.
    """
    if given is None:
        return None
    if len(given) > MOST_KEY_CHARACTERS or not _KEY.fullmatch(given):
        raise InvalidRequest(
            f"Idempotency-Key has {len(given)} characters, or characters that are not printable ASCII; "
            f"accepted: 1 to {MOST_KEY_CHARACTERS} characters of printable ASCII, such as a UUID",
            param="Idempotency-Key",
        )
    return given


def seed_of(caller: Caller, key: str) -> int:
    """The seed of a request with a key and without a seed: a retry after a crash gets the same noise."""
    digest = hashlib.blake2b(f"{caller.name}\n{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)

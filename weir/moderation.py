"""How strictly prompts and images are moderated: for the service, for a key, and for a request."""

from __future__ import annotations

from typing import Literal

from weir.errors import InvalidRequest

#: ``auto`` blocks what the prompt filter and the image checker object to; ``low`` only what they are surer of; ``off``
#: nothing.
Moderation = Literal["auto", "low", "off"]
_STRICTNESS: tuple[Moderation, ...] = ("off", "low", "auto")


def level_of(asked: Literal["auto", "low"] | None, allowed: Moderation) -> Moderation:
    """The level for a request: what it asks for, or else the least strict level that its caller is allowed.

    Raises:
        InvalidRequest: it asks for a less strict level than it is allowed.
    """
    if asked is None:
        return allowed
    if _STRICTNESS.index(asked) < _STRICTNESS.index(allowed):
        raise InvalidRequest(
            f"moderation is {asked}; this key may use {allowed}, which `moderation` in the service file or the keys "
            "file can change",
            param="moderation",
        )
    return asked

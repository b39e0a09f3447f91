"""Paths through the cascade, as answers name them (:class:`weir.cascade.Answer`): in which order they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weir.cascade import AT_DEADLINE, FROM_CACHE
from weir.plan import HEAVY, LIGHT

#: Of a ladder of two.
USUAL = (LIGHT, LIGHT + AT_DEADLINE, HEAVY, FROM_CACHE)
_PATH = re.compile(r"[a-z][a-z0-9-]*")


def read_path(text: str) -> str:
    """The path that a server or a file names.

    Raises:
        ValueError: it cannot be one.
    """
    if not isinstance(text, str) or not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is no path through a cascade")
    return text


def in_order(paths: Iterable[str | None]) -> tuple[str, ...]:
    """The usual paths, and between those of the light and of the heavy variant the further ones that occur."""
    further = sorted({path for path in paths if path} - set(USUAL))
    return (*USUAL[:2], *further, *USUAL[2:])

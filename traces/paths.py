"""Paths through the cascade (:class:`weir.cascade.Answer`): validation and order of display."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weir.cascade import AT_DEADLINE, FROM_CACHE
from weir.plan import HEAVY, LIGHT

#: Paths of a ladder of two.
USUAL = (LIGHT, LIGHT + AT_DEADLINE, HEAVY, FROM_CACHE)
_PATH = re.compile(r"[a-z][a-z0-9-]*")


def read_path(text: str) -> str:
    """Checks a path from a server or a file and returns it.

    Raises:
        ValueError: the text is not a valid path.
    """
    if not isinstance(text, str) or not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is not a path through a cascade")
    return text


def in_order(paths: Iterable[str | None]) -> tuple[str, ...]:
    """The usual paths, with further given paths between those of the light and of the heavy variant."""
    further = sorted({path for path in paths if path} - set(USUAL))
    return (*USUAL[:2], *further, *USUAL[2:])

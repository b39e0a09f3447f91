"""Reads JSON that others supply."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

#: Digits of the longest whole number that is a float, too.
_MOST_DIGITS = 308


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: as :func:`parsed_json`.
    """
    return parsed_json(path.read_text())


def parsed_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number that is too large for a float.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"the number {text[:20]}… is too large")
    return int(text)

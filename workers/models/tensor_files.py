"""safetensors files by their names and headers: which ones belong to a file set, and which tensors they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from safetensors import safe_open

#: Shapes of tensors by name.
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
#: Prefix of a UNet's tensors in checkpoints of the original repositories (``.ckpt`` or a single ``.safetensors``).
_ORIGINAL = "model.diffusion_model."


def file_set(names: Iterable[str], weights: str | None) -> list[str]:
    """The safetensors files of one set among the names of a folder's files.

    Args:
        weights: the set, e.g. fp16 for ``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``; None
            for the files without a set in their name.
    """
    pattern = r"[^.]+\.safetensors" if weights is None else rf"[^.]+\.{re.escape(weights)}(-[^.]+)?\.safetensors"
    return sorted(name for name in names if re.fullmatch(pattern, name))


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a file's header.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
    """
    with safe_open(file, "numpy") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def misfit(given: Shapes, expected: Shapes) -> str | None:
    """How tensors differ from those that a model expects; None if they fit."""
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if any(name.startswith(_ORIGINAL) for name in extra):
        return f"its tensors have the prefix {_ORIGINAL}, as in the original repositories"
    if missing:
        longer = next((name for name in extra if name.endswith(f".{missing[0]}")), None)
        if longer is not None:
            return f"its tensors have the prefix {longer.removesuffix(missing[0])}"
        return f"it lacks {len(missing)} tensors, such as {missing[0]}"
    if extra:
        return f"it has {len(extra)} more tensors, such as {extra[0]}"
    for name, shape in expected.items():
        if given[name] != shape:
            return f"{name} has the shape {list(given[name])} and not {list(shape)}"
    return None

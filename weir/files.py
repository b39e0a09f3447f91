"""Files that are there whole or not at all; whether one can be written is known before the work that it is to hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weir.errors import ConfigError


def check_place(path: Path) -> None:
    """Call it before the work: whether a file can be written there. What lies there stays as it is.

    Raises:
        ConfigError: it cannot; names the path.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is no regular file; name another")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
    draft = _draft(path)
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def make_folder(folder: Path) -> None:
    """Call it before the work: makes a folder where there is none, and knows whether files can be written in it.

    Raises:
        ConfigError: they cannot; names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = _draft(folder / "a")
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: no folder that can be written in: {error.strerror}; name another") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A draft beside the file, to be written by the block; it takes the file's place when the block has ended well.

    Raises:
        ConfigError: it cannot be written, and nothing of it is left.
    """
    check_place(path)
    draft = _draft(path)
    try:
        yield draft
        draft.replace(path)
    except OSError as error:  # NumPy's have no strerror
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")

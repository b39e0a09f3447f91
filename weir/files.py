"""Atomic writes: a file is replaced completely or not at all. Checks that can be made before the work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from weir.errors import ConfigError

#: The rights of other users than the owner.
OTHERS = 0o077


def file_format(path: Path, known: Sequence[str], option: str = "--out") -> str:
    """Returns the format that the extension of a file names, in lower case and without the dot.

    Args:
        known: accepted extensions, without the dot.
        option: option by which the user named the file.

    Raises:
        ConfigError: the extension is none of them, or the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    named = path.suffix[1:].lower()
    if named not in known:
        *others, last = (f".{it}" for it in known)
        accepted = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"{option} is {path}; its name has to end in {accepted}")
    return named


def check_place(path: Path) -> None:
    """Checks that a file can be written at ``path``, without changing an existing one. Call it before the work.

    Raises:
        ConfigError: the file cannot be written; the message names the path.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is not a regular file; name another")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; create it first")
    draft = _draft(path)
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Creates a folder if it is missing, and checks that files can be written in it. Call it before the work.

    Args:
        private: closes the folder to other users of the machine.

    Raises:
        ConfigError: no file can be written, or a private folder belongs to another user; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if private:
            keep_private(folder)
        draft = _draft(folder / "a")
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write in this folder: {error.strerror}; name another") from None


def keep_private(path: Path) -> None:
    """Takes all rights to a file or folder from other users.

    Raises:
        OSError: it belongs to another user, or there is none.
    """
    mode = path.stat().st_mode
    if mode & OTHERS:
        path.chmod(mode & 0o7777 & ~OTHERS)


def is_private(path: Path) -> bool:
    """Whether only its owner, which is the user of this process, can reach a file or folder: by its own rights, or by
    those of a folder above it."""
    found = (it.stat() for it in (path, *path.resolve().parents))
    return any(it.st_uid == os.getuid() and not it.st_mode & OTHERS for it in found)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Context manager that yields the path of a draft, which replaces the file when the block ends without an error.

    Raises:
        ConfigError: the file cannot be written; the draft is removed.
    """
    check_place(path)
    draft = _draft(path)
    try:
        yield draft
        draft.replace(path)
    except OSError as error:  # NumPy's errors have no strerror
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")

"""Benchmarks, one command each: ``python -m benchmarks.NAME``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weir.errors import ConfigError

if TYPE_CHECKING:
    from deploy.state import Service

# Ray reads this variable on import, which some benchmarks do before they start their cluster.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that torchvision is missing, which is not needed

#: Where the files of DiffServe's artifact are published; this project may not ship them.
DIFFSERVE = "https://github.com/qizhengyang98/DiffServe"


def command(main: Callable[[], None]) -> None:
    """Runs a benchmark. What its user can put right ends it with one sentence and exit code 1."""
    try:
        main()
    except ConfigError as error:
        raise SystemExit(error.message) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def served(config: Path, folder: Path, **how: Any) -> Iterator[Service]:
    """Runs the service of a file on a free port in this block.

    Args:
        folder: for the files of its state.
        how: further arguments of :func:`deploy.local.up`.
    """
    from deploy.local import down, up  # not at the top: most benchmarks start no service

    service = up(config, detach=True, port=0, folder=folder, **how)
    assert service is not None  # it is detached
    try:
        yield service
    finally:
        down(service.name, folder=folder)


def diffserve_file(folder: Path, name: str) -> Path:
    """Returns the path of a file of DiffServe's artifact.

    Raises:
        ConfigError: the folder does not hold it.
    """
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{path} is missing; it is a file of DiffServe's artifact, which is at {DIFFSERVE}")
    return path

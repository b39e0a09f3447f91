"""Scores of an adoption's images by a measure, kept in files from which a stopped run continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adoption.images import DrawnImages, Progress
from quality.suite import Judge, scored
from weir.errors import ConfigError
from weir.files import written_whole

#: Images that are scored between two writes.
_BATCH = 32


def scores_of(
    judge: Judge,
    images: DrawnImages,
    pairs: Sequence[tuple[int, str]],
    file: Path,
    progress: Progress | None = None,
) -> np.ndarray:
    """The score of each image for each prompt of ``pairs``, [N]; higher is better.

    Args:
        pairs: index of an image, and the prompt to compare it with.
        file: array of the first scores, which grows by a batch at a time.

    Raises:
        ConfigError: the judge gives a score that is not finite, or the file is damaged.
    """
    found = _known(file, len(pairs))
    while len(found) < len(pairs):
        part = pairs[len(found) : len(found) + _BATCH]
        fresh = scored(judge, [prompt for _, prompt in part], images.read([i for i, _ in part]))
        if not np.isfinite(fresh).all():
            image, prompt = part[int(np.argmin(np.isfinite(fresh)))]
            raise ConfigError(f"the measure gives no finite score to image {image + 1} of {prompt!r}; use another one")
        found = np.concatenate([found, fresh.astype(np.float64)])
        write_array(file, found)
        if progress is not None:
            progress(len(found), len(pairs))
    return found


def array_in(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file; it is made and written if there is none."""
    if not file.exists():
        write_array(file, make())
    return _read(file)


def write_array(file: Path, values: np.ndarray) -> None:
    with written_whole(file) as draft, draft.open("wb") as out:
        np.save(out, values, allow_pickle=False)


def _known(file: Path, count: int) -> np.ndarray:
    return _read(file)[:count] if file.exists() else np.zeros(0)


def _read(file: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{file}: is damaged ({error}); delete it to make it again") from None
    return found

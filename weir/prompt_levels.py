"""Level heads: predict from a prompt's embedding the fastest approximation level that keeps its image's quality.

The classifier of AccuScale/Argus (Agarwal et al., Middleware 2025) was not published. This one is a direction in the
space of the encoder, with cuts along it; ``training/level_head.py`` fits it. Level 0 has the hardest prompts, whose
quality only the whole heavy run keeps. The file is safetensors and names its encoder.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from weir.errors import ConfigError
from weir.files import make_folder, written_whole
from weir.json_files import parsed_json

log = logging.getLogger(__name__)

_FORMAT = "1"


class LevelRecord(BaseModel):
    """Measurements of the prompts of one predicted level, each predicted by a head that was fitted without it.

    Attributes:
        share: of all prompts.
        confidences: of the discriminator in their light images.
        quality: of their mix at equal steps of its light share, from all heavy to all light, where the most confident
            images become light first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    share: float = Field(ge=0, le=1)
    confidences: tuple[float, ...] = Field(min_length=1)
    quality: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _confidences_are_shares(self) -> LevelRecord:
        if any(not 0 <= c <= 1 for c in self.confidences):
            raise ValueError("confidences must lie in 0…1")
        return self


class LevelAbout(BaseModel):
    """The training data of a head, and the accuracy of its predictions.

    Attributes:
        rungs: names of the ladder's rungs, from the best to the fastest.
        alpha: share of the best rung's quality that a level keeps.
        prompts: number of prompts that the head was fitted on.
        records: by level, from level 0.
        quality: of the mix of all prompts, as in a record.
        accuracy, mean_level_error: of predicted levels, on held-out prompts.
        confusion: numbers of prompts by true level (rows) and predicted level (columns).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    encoder: str
    family: str
    rungs: tuple[str, ...] = Field(min_length=2)
    alpha: float = Field(gt=0, le=1)
    prompts: int = Field(ge=1)
    records: tuple[LevelRecord, ...]
    quality: tuple[float, ...] = Field(min_length=2)
    accuracy: float
    mean_level_error: float
    confusion: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _one_record_a_level(self) -> LevelAbout:
        if len(self.records) != len(self.rungs):
            raise ValueError(f"{len(self.records)} records for {len(self.rungs)} rungs; there must be one for each")
        return self


class LevelHead:
    """Predicts levels: level(x) is the number of cuts below w · x.

    Args:
        weights: w, float [D].
        cuts: in ascending order, [levels − 1].
    """

    def __init__(self, weights: np.ndarray, cuts: np.ndarray, about: LevelAbout):
        if len(cuts) != len(about.rungs) - 1 or any(a > b for a, b in pairwise(cuts.tolist())):
            raise ValueError("cuts must ascend, one fewer than there are rungs")
        if not (np.isfinite(weights).all() and np.isfinite(cuts).all()):
            raise ValueError("weights and cuts must be finite")
        self.about = about
        self._weights = np.asarray(weights, np.float32)
        self._cuts = np.asarray(cuts, np.float32)

    @property
    def version(self) -> str:
        """A hash of the weights, the cuts and the records."""
        digest = hashlib.blake2b(digest_size=6)
        for part in (self._weights.tobytes(), self._cuts.tobytes(), self.about.model_dump_json().encode()):
            digest.update(part)
        return digest.hexdigest()

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """w · x, [B]; the larger the score, the faster the level that the prompt tolerates."""
        return np.asarray(np.atleast_2d(vectors) @ self._weights)

    def levels(self, vectors: np.ndarray) -> np.ndarray:
        """Predicted levels, int [B]."""
        return np.searchsorted(self._cuts, self.scores(vectors), side="left")

    def level(self, vector: np.ndarray) -> int | None:
        """The predicted level of one prompt; None if the vector has the wrong length or is not finite. A request
        without a level is treated like any other."""
        vector = np.asarray(vector, np.float32).ravel()
        if len(vector) != len(self._weights) or not np.isfinite(vector).all():
            return None
        return int(self.levels(vector)[0])

    def save(self, path: Path) -> None:
        """Writes the head to a file atomically, and creates the folder if it is missing.

        Raises:
            ConfigError: the file cannot be written.
        """
        make_folder(path.parent)
        about = {"format": _FORMAT, "about": self.about.model_dump_json()}
        with written_whole(path) as draft:
            draft.write_bytes(save({"weights": self._weights, "cuts": self._cuts}, metadata=about))

    def publish(self, path: Path) -> None:
        """Replaces the head at ``path`` atomically. Copies of both heads are stored beside it under their versions, so
        that the old one can be restored.

        Raises:
            ConfigError: the existing file is not a level head, or the folder cannot be written.
        """
        if path.exists():
            shutil.copy2(path, _versioned(path, LevelHead.load(path).version))
        self.save(_versioned(path, self.version))
        self.save(path)

    @classmethod
    def load(cls, path: Path, *, encoder: str | None = None, steps: int | None = None) -> LevelHead:
        """Reads what :meth:`save` wrote.

        Args:
            encoder: version of the encoder that the head is used with; None skips the check.
            steps: of the heavy variant that the head is used for; None skips the check.

        Raises:
            ConfigError: the file is missing, is not a level head, or has another encoder or ladder; the message names
                the remedy.
        """
        remedy = "fit it again with `weir levels fit`"
        if not path.is_file():
            raise ConfigError(f"levels: there is no file {path}; {remedy}")
        try:
            with safe_open(path, "numpy") as file:
                kept = file.metadata() or {}
                if kept.get("format") != _FORMAT:
                    raise ValueError(f"format {kept.get('format')}")
                about = LevelAbout.model_validate(parsed_json(kept["about"]))
                found = cls(file.get_tensor("weights"), file.get_tensor("cuts"), about)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
            raise ConfigError(f"levels: {path}: not a level head ({problems}); {remedy}") from None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise ConfigError(f"levels: {path}: not a level head ({error}); {remedy}") from None
        if encoder is not None and about.encoder != encoder:
            raise ConfigError(
                f"levels: {path}: fitted on vectors of {about.encoder}, the cache's encoder is {encoder}; {remedy}"
            )
        if steps is not None and about.rungs[0] != f"heavy-{steps}":
            raise ConfigError(
                f"levels: {path}: its best level is {about.rungs[0]}, the heavy variant now runs {steps} steps; "
                f"{remedy}"
            )
        return found


class WatchedHead:
    """The head of a file, which is read again when the file is replaced.

    Args:
        encoder, steps: as for :meth:`LevelHead.load`.

    Raises:
        ConfigError: as for :meth:`LevelHead.load`.
    """

    def __init__(self, path: Path, *, encoder: str | None = None, steps: int | None = None):
        self.path = path
        self._encoder, self._steps = encoder, steps
        self._stamp = _stamp(path)
        self.head = self._load()

    def renewed(self) -> bool:
        """Whether :attr:`head` has changed since the last call. An invalid file changes nothing."""
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            head = self._load()
        except ConfigError as error:
            log.warning("kept the level head %s: %s", self.head.version, error.message)
            return False
        self.head, before = head, self.head
        return head.version != before.version

    def _load(self) -> LevelHead:
        return LevelHead.load(self.path, encoder=self._encoder, steps=self._steps)


def _versioned(path: Path, version: str) -> Path:
    return path.with_name(f"{path.stem}-{version}{path.suffix}")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Identifies the content of a file by its time and inode; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino

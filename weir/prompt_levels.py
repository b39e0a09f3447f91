"""Predicted levels: from a prompt's embedding to the strongest approximation that its image is likely to stand.

AccuScale/Argus' classifier (Agarwal et al., Middleware 2025) was not published; ours is one direction in the space of
the encoder, and cuts along it. ``training/level_head.py`` fits it.
Level 0 is the hardest: only the whole heavy run keeps the quality. The file is safetensors and knows its encoder.
"""

from __future__ import annotations

import hashlib
import json
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

log = logging.getLogger(__name__)

_FORMAT = "1"


class LevelRecord(BaseModel):
    """What was measured of the prompts of one predicted level, each predicted by a head that had not seen it.

    ``share`` of all prompts; ``confidences`` of the discriminator in their light images; ``quality`` of their mix at
    equal steps of its light share, from all heavy to all light, the most confident ones light first.
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
    """What a head was fitted on, and how good it is.

    ``rungs``: of the ladder, from the best to the fastest, by name; ``alpha``: share of the best rung's quality that a
    level keeps; ``prompts``: how many it was fitted on; ``records``: by level, from level 0; ``quality``: of all
    prompts' mix, as in a record; ``accuracy`` and ``mean_level_error``: of predicted levels, on prompts that were held
    out; ``confusion``: prompts by true level (rows) and predicted level.
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
    """level(x) = the number of cuts below w · x.

    Args:
        weights: w, float [D].
        cuts: ascending, [levels − 1].
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
        """Changes with what the head predicts and with what is recorded of it."""
        digest = hashlib.blake2b(digest_size=6)
        for part in (self._weights.tobytes(), self._cuts.tobytes(), self.about.model_dump_json().encode()):
            digest.update(part)
        return digest.hexdigest()

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """w · x; the larger, the stronger an approximation the prompt stands; [B]."""
        return np.asarray(np.atleast_2d(vectors) @ self._weights)

    def levels(self, vectors: np.ndarray) -> np.ndarray:
        """Predicted levels, int [B]."""
        return np.searchsorted(self._cuts, self.scores(vectors), side="left")

    def level(self, vector: np.ndarray) -> int | None:
        """The predicted level of one prompt; None where the vector says nothing (it is no unit vector of finite
        numbers), and the request then goes the way of all requests."""
        vector = np.asarray(vector, np.float32).ravel()
        if len(vector) != len(self._weights) or not np.isfinite(vector).all():
            return None
        return int(self.levels(vector)[0])

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all, and makes its folder where there is none.

        Raises:
            ConfigError: it cannot be written.
        """
        make_folder(path.parent)
        about = {"format": _FORMAT, "about": self.about.model_dump_json()}
        with written_whole(path) as draft:
            draft.write_bytes(save({"weights": self._weights, "cuts": self._cuts}, metadata=about))

    def publish(self, path: Path) -> None:
        """Takes the place of the head at ``path`` in one step. Both lie beside it under their versions as well, so that
        a copy brings the old one back.

        Raises:
            ConfigError: what lies there is no level head, or the folder cannot be written.
        """
        if path.exists():
            shutil.copy2(path, _versioned(path, LevelHead.load(path).version))
        self.save(_versioned(path, self.version))
        self.save(path)

    @classmethod
    def load(cls, path: Path, *, encoder: str | None = None, steps: int | None = None) -> LevelHead:
        """Reads what :meth:`save` wrote.

        Args:
            encoder: version of the encoder whose vectors it will see; None: any.
            steps: of the heavy variant that it will be used for; None: any.

        Raises:
            ConfigError: it is missing, no level head, or of another encoder or ladder; the message says the remedy.
        """
        remedy = "fit it again with `weir levels fit`"
        if not path.is_file():
            raise ConfigError(f"levels: there is no file {path}; {remedy}")
        try:
            with safe_open(path, "numpy") as file:
                kept = file.metadata() or {}
                if kept.get("format") != _FORMAT:
                    raise ValueError(f"format {kept.get('format')}")
                about = LevelAbout.model_validate(json.loads(kept["about"]))
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
    """The head of a file, read again when another one has taken its place.

    Args:
        encoder, steps: as :meth:`LevelHead.load`.

    Raises:
        ConfigError: as :meth:`LevelHead.load`.
    """

    def __init__(self, path: Path, *, encoder: str | None = None, steps: int | None = None):
        self.path = path
        self._encoder, self._steps = encoder, steps
        self._stamp = _stamp(path)
        self.head = self._load()

    def renewed(self) -> bool:
        """Whether :attr:`head` is another one than at the last call. A file that turns bad changes nothing."""
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
    """Changes when the file does; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino

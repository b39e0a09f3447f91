"""The stages of an adoption: in which order they run, what each depends on, and where their results are kept.

A stage has a key: a hash of its own inputs and of the keys of the stages that it builds on. Its result is a JSON file
whose name has the key, written when all else of the stage is done. So a finished stage is skipped, a change of an input
repeats exactly the stages that depend on it, and nothing has to be invalidated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weir.errors import ConfigError
from weir.files import make_folder, written_whole
from weir.json_files import read_json

#: Part of every key. Raise it when a stage gives another result from the same inputs.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        title: what it does, for the user.
        inputs: everything that its result depends on besides other stages, in the form of JSON.
        after: names of the stages whose results it reads.
    """

    name: str
    title: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of each stage, by name.

    Raises:
        ValueError: a stage comes before one that it builds on.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        if missing := [name for name in stage.after if name not in keys]:
            raise ValueError(f"{stage.name} is placed before {', '.join(missing)}")
        parts = [FORMAT, stage.name, stage.inputs, {name: keys[name] for name in stage.after}]
        text = json.dumps(parts, sort_keys=True)
        keys[stage.name] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return keys


class Results:
    """Results of stages in a folder, which only this class writes to.

    Args:
        folder: created if it is missing.
        stages: in the order in which they run.
    """

    def __init__(self, folder: Path, stages: Sequence[Stage]):
        make_folder(folder)
        self._folder, self._keys = folder, stage_keys(stages)
        #: Seconds that the last run of each stage took whose result was read.
        self.seconds: dict[str, float] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        """The result of a stage, or None when it is not finished.

        Raises:
            ConfigError: the file is damaged.
        """
        path = self._path(name)
        try:
            found = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: is damaged ({error}); delete it to repeat its stage") from None
        if not isinstance(found, dict) or not isinstance(found.get("result"), dict):
            raise ConfigError(f"{path}: is not the result of a stage; delete it to repeat the stage")
        self.seconds[name] = float(found.get("seconds", 0.0))
        result: dict[str, Any] = found["result"]
        return result

    def put(self, name: str, result: Mapping[str, Any], seconds: float) -> None:
        """Writes the result of a finished stage.

        Args:
            seconds: time that its last run took.
        """
        with written_whole(self._path(name)) as draft:
            fields = {"seconds": round(seconds, 1), "result": result}
            draft.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def folder(self, name: str) -> Path:
        """A folder for the files of a stage, finished or not."""
        folder = self._folder / f"{name}-{self._keys[name]}"
        make_folder(folder)
        return folder

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{self._keys[name]}.json"

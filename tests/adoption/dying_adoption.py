"""Runs an adoption that is killed once in each of its stages, and prints what every run did, one JSON object a line.

    python -m tests.adoption.dying_adoption FAMILY.yaml FOLDER

Each run is a process of its own, forked from this one, which has loaded the family once, so that no run imports again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adoption import images, run
from adoption.context import Choices
from adoption.stages import Results
from weir.config import load_family
from workers.models.family import Family

PROMPTS = [f"prompt {i}" for i in range(run.LEAST)]
CHOICES = Choices(
    measure="testing.brightness:Brightness", light_rounds=2, pairs=1, steps=2, batch_sizes=(8,), cache_pairs=8
)


def die_in(stage: str) -> None:
    """Makes the stage kill this process: in the midst of its files, or else before it writes its result."""
    if stage == "images":
        write = images.DrawnImages.write

        def write_and_die(self: images.DrawnImages, prompt: int, png: bytes) -> None:
            write(self, prompt, png)
            if prompt == 20:
                die()

        images.DrawnImages.write = write_and_die  # type: ignore[method-assign]
        return
    put = Results.put

    def put_or_die(self: Results, name: str, result: Mapping[str, Any], seconds: float) -> None:
        if name == stage:
            die()
        put(self, name, result, seconds)

    Results.put = put_or_die  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def files(folder: Path) -> dict[Path, int]:
    """Images and results, with the times at which they were written."""
    found = [*folder.rglob("work/images-*/*/*.png"), *folder.glob("work/*.json")]
    return {path: path.stat().st_mtime_ns for path in found}


def one_run(family: str, folder: Path, stage: str | None) -> dict[str, Any]:
    """Runs the adoption in a process of its own; None: it is not killed."""
    before = files(folder)
    if (child := os.fork()) == 0:
        if stage is not None:
            die_in(stage)
        run.adopt(load_family(family), PROMPTS, folder, CHOICES)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    after = files(folder)
    fresh = after.keys() - before.keys()
    return {
        "stage": stage,
        "ended": os.waitstatus_to_exitcode(status),
        "new images": sum(path.suffix == ".png" for path in fresh),
        "new results": sorted(
            path.name.rsplit("-", 1)[0] for path in after.keys() - before.keys() if path.suffix == ".json"
        ),
        "written again": [str(path) for path in before if after.get(path) != before[path]],
    }


def main() -> None:
    family, folder = sys.argv[1], Path(sys.argv[2])
    names = [stage.name for stage in run.stages(load_family(family), PROMPTS, CHOICES)]
    Family.load(load_family(family), threads=1)
    for stage in (*names, None):
        sys.stdout.write(json.dumps(one_run(family, folder, stage)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

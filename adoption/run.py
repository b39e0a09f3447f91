"""Runs the stages of an adoption in order, and skips those that are finished."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adoption.caching import cache_profile
from adoption.calibrating import calibrate, ladder, levels
from adoption.context import Choices, Context, Report
from adoption.discriminators import discriminators
from adoption.measuring import check, fingerprint, images, profile, scores, seconds_left, try_measure
from adoption.report import write_report
from adoption.service_files import SERVICE, write_files
from adoption.stages import Results, Stage
from quality.suite import read_pictures
from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.files import make_folder

#: Folder of unfinished work, and of results that a later adoption builds on.
WORK = "work"
#: Least number of different prompts: of fewer, no fold has enough to say anything.
LEAST = 40


@dataclass(frozen=True, slots=True)
class Note:
    """A stage that ended, for the user.

    Attributes:
        skipped: its result was there already.
        images_s: after the stage ``profile``, the estimated time of the images to come.
    """

    stage: Stage
    skipped: bool
    seconds: float = 0.0
    images_s: float | None = None


def stages(family: FamilyConfig, prompts: Sequence[str], choices: Choices) -> list[Stage]:
    """All stages in their order, with what each depends on."""
    text = hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest()
    fields = family.model_dump(mode="json")
    judged = choices.part("measure", "clip", "pick")
    drawn = ("light_rounds", "levels")
    return [
        Stage("check", "check the weights", {"family": fields, "files": fingerprint(family)}),
        Stage("measure", "try the measure", judged, ("check",)),
        Stage("profile", "profile the variants", choices.part("batch_sizes", "threads"), ("check",)),
        Stage("images", "generate the images", {"prompts": text, **choices.part(*drawn)}, ("check",)),
        Stage("scores", "score the images", choices.part("reference"), ("measure", "images")),
        Stage(
            "discriminators",
            "train the discriminators",
            choices.part("pairs", "steps", "trained_only"),
            ("scores",),
        ),
        Stage("calibration", "calibrate the thresholds", {}, ("profile", "scores", "discriminators")),
        Stage("cache", "profile the cache", {"prompts": text, **choices.part("cache_pairs")}, ("measure",)),
        Stage("levels", "fit a level head", {}, ("scores", "discriminators")),
        Stage("ladder", "choose the ladder", choices.part("replicas", "slo_s", "demand_rps"), ("calibration",)),
    ]


_WORK: Mapping[str, Callable[[Context], dict[str, Any]]] = {
    "check": check,
    "measure": try_measure,
    "profile": profile,
    "images": images,
    "scores": scores,
    "discriminators": discriminators,
    "calibration": calibrate,
    "cache": cache_profile,
    "levels": levels,
    "ladder": ladder,
}


def adopt(
    family: FamilyConfig,
    prompts: Sequence[str],
    out: Path,
    choices: Choices,
    report: Report | None = None,
    say: Callable[[Note], None] | None = None,
) -> Path:
    """Measures a family on the prompts of its users, and writes a service and a report to the folder ``out``.

    Args:
        report: called while a stage runs.
        say: called when a stage is finished or skipped.

    Returns:
        The service file.

    Raises:
        ConfigError: an input cannot be used; the message names it.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < LEAST:
        raise ConfigError(
            f"--prompts: the number of different prompts is {len(different)}; give at least {LEAST}, and better "
            "several hundred of your users"
        )
    if choices.reference is not None:
        read_pictures(choices.reference)
    make_folder(out)
    plan = stages(family, different, choices)
    context = Context(family, different, choices, Results(out / WORK, plan), report)
    if context.results.get("measure") is None:
        context.load_judge()  # before anything that takes time
    for stage in plan:
        known = context.results.get(stage.name)
        started = time.perf_counter()
        if known is None:
            context.results.put(stage.name, _WORK[stage.name](context), time.perf_counter() - started)
        if say is not None:
            to_come = seconds_left(context) if stage.name == "profile" else None
            say(Note(stage, known is not None, time.perf_counter() - started, to_come))
    write_report(context, out, write_files(context, out))
    return out / SERVICE

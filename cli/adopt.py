"""From a family and prompts to a measured service: ``weir adopt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.judge_options import JudgeOptions
from cli.option_groups import grouped
from cli.terminal import error_exit, note, print_line, progress
from weir.config import FamilyConfig, load_family
from weir.errors import ConfigError
from weir.files import make_folder

if TYPE_CHECKING:
    from adoption.context import Choices
    from adoption.run import Note


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """Options of what is measured and learned."""

    reference: Annotated[Path | None, typer.Option(help="Real images, to measure the Fréchet distance to.")] = None
    light_images: Annotated[int, typer.Option(min=1, max=16, help="Light images of each prompt to learn from.")] = 4
    pairs: Annotated[int, typer.Option(min=0, max=16, help="Other prompts to compare each light image with.")] = 8
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a discriminator.")] = 600
    trained_only: Annotated[
        bool, typer.Option("--trained-only", help="Choose none of the discriminators that the family file names.")
    ] = False
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to profile, comma-separated.")] = "1,2,4,8"
    cache_pairs: Annotated[int, typer.Option(min=0, help="Pairs of prompts to profile the cache; 0: no cache.")] = 32
    levels: Annotated[
        str, typer.Option(help="Numbers of steps of shorter heavy runs to measure, e.g. 10,5; for a level head, too.")
    ] = ""
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Options of the service to write."""

    replicas: Annotated[int, typer.Option(min=1, max=4096, help="Replicas of the service.")] = 4
    slo: Annotated[
        float | None, typer.Option(min=0.01, help="Deadline, seconds.", show_default="three times both variants' time")
    ] = None
    demand: Annotated[float | None, typer.Option(min=0.001, help="Requests per second that you expect.")] = None
    keep: Annotated[float, typer.Option(min=0, help="Share of all-heavy quality that the report asks for.")] = 0.97


@grouped
def adopt(
    family: Annotated[Path, typer.Argument(help="Family file.")],
    prompts: Annotated[Path, typer.Option(help="Prompts of your users, one per line; several hundred are good.")],
    out: Annotated[Path, typer.Option(help="Folder of the service and the report. A stopped run continues in it.")],
    count: Annotated[int, typer.Option(min=40, help="Use at most this many prompts.")] = 600,
    *,
    measure: JudgeOptions,
    learning: LearningOptions,
    service: ServiceOptions,
) -> None:
    """Measure a family on the prompts of its users, train its discriminators, and write a service and a report.

    Example: weir adopt my-family.yaml --prompts prompts.txt --pick yuvalkirstain/PickScore_v1 --out my-service
    """
    from adoption.report import REPORT
    from cache.replay import read_prompts

    with error_exit():
        config, asked = load_family(family), read_prompts(prompts)
        choices = _choices(config, measure, learning, service)
        written = _run(config, list(dict.fromkeys(asked))[:count], out, choices)
    print_line(f"the report is {out / REPORT}")
    print_line(f"weir up {written}")


def _choices(
    family: FamilyConfig, measure: JudgeOptions, learning: LearningOptions, service: ServiceOptions
) -> Choices:
    from adoption.context import Choices
    from quality.suite import named_measure

    kind, _ = named_measure(measure.judge, measure.clip, measure.pick)
    return Choices(
        measure=kind,
        clip=measure.clip,
        pick=measure.pick,
        reference=learning.reference,
        light_rounds=learning.light_images,
        pairs=learning.pairs,
        steps=learning.steps,
        trained_only=learning.trained_only,
        batch_sizes=_numbers("--batch-sizes", learning.batch_sizes),
        cache_pairs=learning.cache_pairs,
        levels=_levels(learning.levels, family.heavy.steps),
        replicas=service.replicas,
        slo_s=service.slo,
        demand_rps=service.demand,
        keep=service.keep,
        threads=learning.threads,
    )


def _run(family: FamilyConfig, prompts: list[str], out: Path, choices: Choices) -> Path:
    """Adopts a family with a progress bar; returns the service file."""
    from adoption.run import adopt as run

    make_folder(out)
    with progress() as bar:
        task = bar.add_task("check the weights", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        return run(family, prompts, out, choices, report, _say)


def _say(it: Note) -> None:
    note(f"{it.stage.title}: {'was done' if it.skipped else f'{it.seconds:.0f} s'}")
    if it.images_s is not None:
        note(f"the images will take about {max(1, round(it.images_s / 60))} min; stop when you like, it continues")


def _numbers(option: str, given: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(n) for n in given.split(",") if n.strip()}))
    except ValueError:
        raise ConfigError(f"{option} is {given!r}; give whole numbers, comma-separated") from None
    if (found and found[0] < 1) or (not found and option == "--batch-sizes"):
        raise ConfigError(f"{option} is {given!r}; give whole numbers of at least 1")
    return found


def _levels(given: str, most: int) -> tuple[int, ...]:
    """Numbers of steps in descending order."""
    found = _numbers("--levels", given)
    if found and found[-1] >= most:
        raise ConfigError(f"--levels is {given!r}; give numbers below the last variant's {most} steps")
    return tuple(reversed(found))

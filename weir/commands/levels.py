"""Predicted levels: ``weir levels fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from weir.commands.terminal import FAMILY, REPOSITORY, FamilyOption, JsonOption, answered, console, print_json, progress
from weir.config import load_family
from weir.errors import ConfigError

app = typer.Typer(help="Predict which approximation a prompt stands.", no_args_is_help=True)


@app.command()
def fit(
    family: FamilyOption = FAMILY,
    count: Annotated[int, typer.Option(min=50, help="Prompts to draw at every level.")] = 1000,
    steps: Annotated[
        str, typer.Option(help="Shorter heavy runs between the whole one and the light variant.")
    ] = "10,5",
    alpha: Annotated[float, typer.Option(min=0.5, max=1, help="Share of the best level's quality to keep.")] = 0.95,
    judge: Annotated[str, typer.Option(help="attributes or clip.")] = "attributes",
    work: Annotated[Path, typer.Option(help="Folder of the drawn pairs; a run goes on there.")] = Path("runs/levels"),
    out: Annotated[Path, typer.Option(help="Level head to write.")] = REPOSITORY
    / "models"
    / "weir-tiny"
    / "levels"
    / "head.safetensors",
    as_json: JsonOption = False,
) -> None:
    """Draw prompts at every level, judge them, and fit the classifier that predicts levels from embeddings.

    Example: weir levels fit --count 1000
    """
    from cache.encoder import family_encoder
    from quality.suite import family_suite
    from training.level_head import fit_levels
    from training.level_pairs import draw_pairs, ladder_of

    with answered():
        config = load_family(family)
        try:
            shorter = [int(n) for n in steps.split(",") if n.strip()]
        except ValueError:
            raise ConfigError(f"--steps is {steps!r}; give whole numbers like 10,5") from None
        suite = family_suite(config)
        if judge not in suite.judges:
            raise ConfigError(f"--judge is {judge!r}; choose one of {', '.join(suite.judges)}")
        with progress() as bar:
            task = bar.add_task("prompts at every level", total=count)
            pairs = draw_pairs(
                config,
                suite,
                judge,
                ladder_of(config, shorter),
                count,
                work / "pairs.npz",
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        encoder = family_encoder(config)
        head, report = fit_levels(pairs, encoder.encode(pairs.prompts), encoder.version, config.name, alpha=alpha)
        head.save(out)
    if as_json:
        print_json(report.to_dict())
        return
    table = Table(title=f"{report.prompts} held-out prompts: true level by predicted level", box=box.SIMPLE_HEAD)
    table.add_column("")
    for rung in report.rungs:
        table.add_column(rung, justify="right")
    for rung, row in zip(report.rungs, report.confusion, strict=True):
        table.add_row(rung, *map(str, row))
    console.print(table)
    console.print(
        f"right level: {report.accuracy:.1%} (always the most frequent: {report.majority:.1%}); "
        f"mean error {report.mean_level_error:.2f} levels",
        highlight=False,
    )
    gains = Table(title="quality at equal load: who is drawn heavy", box=box.SIMPLE_HEAD)
    for column in ("heavy share", "predicted", "at random", "best possible"):
        gains.add_column(column, justify="right")
    for share, *values in zip(report.heavy_share, report.predicted, report.agnostic, report.oracle, strict=True):
        gains.add_row(f"{share:.0%}", *(f"{v:.4f}" for v in values))
    console.print(gains)
    console.print(f"gained over random, mean: {report.gained:+.4f}; written to {out}", highlight=False)

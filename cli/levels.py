"""Fit and check the predictor of approximation levels: ``weir levels fit`` and ``weir levels check``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from cli.option_groups import grouped
from cli.terminal import (
    FamilyOption,
    JsonOption,
    error_exit,
    print_json,
    print_line,
    progress,
    results,
)
from weir.assets import FAMILY, LEVEL_HEAD
from weir.config import FamilyConfig, load_family
from weir.errors import ConfigError
from weir.files import check_place, file_format, make_folder
from weir.prompt_levels import LevelHead

if TYPE_CHECKING:
    from training.level_pairs import LevelPairs

#: Seed of shadow samples, whose prompts differ from those of fits.
SHADOW_SEED = 3_000_017

app = typer.Typer(help="Predict which approximation level a prompt tolerates.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Options of prompts that are generated and judged at every level."""

    count: Annotated[int, typer.Option(min=50, help="Prompts to generate at every level.")] = 1000
    judge: Annotated[str, typer.Option(help="attributes or clip.")] = "attributes"
    work: Annotated[Path, typer.Option(help="Folder of the images, to continue a run.")] = Path("runs/levels")

    def draw(self, config: FamilyConfig, shorter: list[int], what: str, seed: int) -> LevelPairs:
        """Generates the prompts and judges the images, with a progress bar.

        Args:
            shorter: numbers of steps of the levels between the whole heavy run and the light variant.
            what: names the prompts, for the bar.
            seed: of the prompts.

        Raises:
            ConfigError: an option is invalid, or the family cannot generate an image.
        """
        from quality.suite import family_suite
        from training.level_pairs import draw_pairs, held_out_prompts, ladder_of

        suite = family_suite(config)
        if self.judge not in suite.judges:
            raise ConfigError(f"--judge is {self.judge!r}; choose one of {', '.join(suite.judges)}")
        make_folder(self.work)
        with progress() as bar:
            task = bar.add_task(what, total=self.count)
            return draw_pairs(
                config,
                suite,
                self.judge,
                ladder_of(config, shorter),
                held_out_prompts(self.count, seed),
                self.work / "pairs.npz",
                lambda done, total: bar.update(task, completed=done, total=total),
            )


@dataclass(frozen=True, slots=True)
class SampleOptions(PairOptions):
    """Options of shadow samples."""

    count: Annotated[int, typer.Option(min=50, help="Shadow samples: prompts to generate at every level.")] = 200
    work: Annotated[Path, typer.Option(help="Folder of the samples, to continue a run.")] = Path("runs/levels-check")


@app.command()
@grouped
def fit(
    family: FamilyOption = FAMILY,
    *,
    generated: PairOptions,
    steps: Annotated[
        str, typer.Option(help="Numbers of steps of the levels between the whole heavy run and the light variant.")
    ] = "10,5",
    alpha: Annotated[float, typer.Option(min=0.5, max=1, help="Share of the best level's quality to keep.")] = 0.95,
    out: Annotated[Path, typer.Option(help="Level head to write.")] = LEVEL_HEAD,
    as_json: JsonOption = False,
) -> None:
    """Generate prompts at every level, judge the images, and fit the classifier that predicts levels from embeddings.

    Example: weir levels fit --count 1000
    """
    from cache.encoder import family_encoder
    from training.level_head import fit_levels
    from training.level_pairs import SEED

    with error_exit():
        config = load_family(family)
        try:
            shorter = [int(n) for n in steps.split(",") if n.strip()]
        except ValueError:
            raise ConfigError(f"--steps is {steps!r}; give whole numbers like 10,5") from None
        file_format(out, ["safetensors"])
        make_folder(out.parent)
        check_place(out)
        pairs = generated.draw(config, shorter, "prompts at every level", SEED)
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
    results.print(table)
    print_line(
        f"right level: {report.accuracy:.1%} (always the most frequent: {report.majority:.1%}); "
        f"mean error {report.mean_level_error:.2f} levels"
    )
    gains = Table(title="quality at equal load, by selection of the heavy prompts", box=box.SIMPLE_HEAD)
    for column in ("heavy share", "predicted", "at random", "best possible"):
        gains.add_column(column, justify="right")
    for share, *values in zip(report.heavy_share, report.predicted, report.agnostic, report.oracle, strict=True):
        gains.add_row(f"{share:.0%}", *(f"{v:.4f}" for v in values))
    results.print(gains)
    print_line(f"mean gain over random selection: {report.gained:+.4f}; written to {out}")


@app.command()
@grouped
def check(
    head: Annotated[Path, typer.Argument(help="Level head to check.")] = LEVEL_HEAD,
    family: FamilyOption = FAMILY,
    *,
    samples: SampleOptions,
    was: Annotated[
        bool,
        typer.Option("--alarmed", help="The last check raised an alarm, which takes more to end."),
    ] = False,
    refit: Annotated[bool, typer.Option(help="If the head has drifted, fit it again from the samples.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the level head with new shadow samples. Exit code 1 if it has drifted.

    Example: weir levels check --count 200 --refit
    """
    from cache.encoder import family_encoder
    from training.drift import DriftRules, alarmed, level_drifts
    from training.level_head import fit_levels

    with error_exit():
        config = load_family(family)
        LevelHead.load(head, steps=config.heavy.steps)  # before anything that takes time
        if refit:
            check_place(head)
        encoder = family_encoder(config)
        known = LevelHead.load(head, encoder=encoder.version, steps=config.heavy.steps)
        shorter = [int(rung.rsplit("-", 1)[1]) for rung in known.about.rungs[1:-1]]
        pairs = samples.draw(config, shorter, "shadow samples", SHADOW_SEED)
        vectors = encoder.encode(pairs.prompts)
        drifts = level_drifts(known, pairs, vectors)
        drifted = alarmed(drifts, DriftRules(), was)
        fitted = known
        if drifted and refit:
            fitted, _ = fit_levels(pairs, vectors, encoder.version, config.name, alpha=known.about.alpha)
            fitted.publish(head)
    if as_json:
        rows = [asdict(it) for it in drifts]
        print_json({"drifted": drifted, "was": known.version, "version": fitted.version, "levels": rows})
    else:
        table = Table(title=f"{len(pairs.prompts)} shadow samples: loss of the light variant", box=box.SIMPLE_HEAD)
        for column in ("level", "samples", "recorded", "now", "±"):
            table.add_column(column, justify="left" if column == "level" else "right")
        for it in drifts:
            table.add_row(it.level, str(it.samples), f"{it.recorded:.3f}", f"{it.realised:.3f}", f"{it.error:.3f}")
        results.print(table)
        verdict = "valid"
        if drifted:
            verdict = f"fitted again: {fitted.version}" if refit else "it has drifted; fit it again with --refit"
        print_line(f"level head {known.version}: {verdict}")
    if drifted and not refit:
        raise typer.Exit(1)

"""Measure the images of replays: ``weir score``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import grouped
from cli.terminal import FamilyOption, JsonOption, error_exit, print_json, print_line
from weir.assets import FAMILY
from weir.config import load_family
from weir.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from quality.suite import Suite


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """Options of the measures of images."""

    family: FamilyOption = FAMILY
    clip: Annotated[str | None, typer.Option(help="CLIP for CLIP scores: hub name or folder.")] = None
    pick: Annotated[str | None, typer.Option(help="PickScore: hub name or folder.")] = None
    inception: Annotated[str | None, typer.Option(help="Inception-v3: hub name or folder.")] = None
    measure: Annotated[
        list[str] | None, typer.Option(help="module:name of a measure of your own; repeat it for several.")
    ] = None

    def load(self, *, distance: bool) -> Suite:
        """The measures that the options name; without any of them, the family's.

        Args:
            distance: whether a Fréchet distance is to be measured.

        Raises:
            ConfigError: a measure cannot be loaded.
        """
        from quality.suite import INCEPTION, family_suite, hub_suite

        if self.clip or self.pick or self.inception or self.measure:
            published = (self.inception or INCEPTION) if distance else None
            return hub_suite(inception=published, clip=self.clip, pick=self.pick, own=self.measure or ())
        return family_suite(load_family(self.family))


@grouped
def score(
    runs: Annotated[list[Path], typer.Argument(help="Folders of replays, with requests.csv and images.")],
    reference: Annotated[Path | None, typer.Option(help="Folder of real images, for the Fréchet distance.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of another replay of the trace, for paired quality ratios.")
    ] = None,
    *,
    measures: SuiteOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure the images of replays: CLIP score, PickScore, Fréchet distance, and ratios to another replay.

    Uses the models of --clip, --pick and --inception, and the measures of --measure; without any of them, the family's.

    Example: weir score runs/weir --against runs/all-heavy --clip openai/clip-vit-large-patch14
    """
    from quality.suite import read_pictures

    with error_exit():
        images = {run: _read_images(run) for run in [*runs, *([against] if against else [])]}
        suite = measures.load(distance=reference is not None)
        real = None if reference is None else suite.features(read_pictures(reference))
        scores = {run: _scores(suite, found) for run, found in images.items()}
        rows = [_row(suite, run, images[run], scores[run], real) for run in runs]
        if against is not None:
            for run, row in zip(runs, rows, strict=True):
                row["paired"] = _paired(run, scores[run], against, scores[against])
    if as_json:
        print_json({"runs": rows})
        return
    for row in rows:
        paired = row.pop("paired", {})
        cells = [f"{name} {it:.3f}" if isinstance(it, float) else f"{name} {it}" for name, it in row.items()]
        print_line(f"  {', '.join(cells[1:])}", bold=row["run"])
        for name, of in paired.items():
            ratio = f"{of['ratio']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"
            print_line(f"  {name} {ratio} of {against}'s, over {of['images']} images")


def _read_images(run: Path) -> dict[int, tuple[str, Image.Image]]:
    """Prompts and images of a replay, by index in the trace.

    Raises:
        ConfigError: the folder holds no replay, the replay kept no images, or an image cannot be read.
    """
    from PIL import Image

    from traces.outcome import read_outcomes
    from traces.replay import ROWS

    found = {}
    for outcome in read_outcomes(run / ROWS):
        if outcome.image:
            try:
                with Image.open(run / outcome.image) as image:
                    found[outcome.index] = (outcome.prompt, image.convert("RGB"))
            except OSError as error:
                raise ConfigError(f"{run / outcome.image}: not an image: {error}") from None
    if not found:
        raise ConfigError(f"{run}: the replay kept no images; replay again, without --no-images")
    sizes = sorted({image.size for _, image in found.values()})
    if len(sizes) > 1:
        raise ConfigError(f"{run}: the images have different sizes, {sizes}; they must have one size")
    return found


def _scores(suite: Suite, found: dict[int, tuple[str, Image.Image]]) -> dict[str, dict[int, float]]:
    """Scores by judge and index in the trace."""
    prompts, images = [prompt for prompt, _ in found.values()], [image for _, image in found.values()]
    return {
        name: dict(zip(found, values.tolist(), strict=True)) for name, values in suite.scores(prompts, images).items()
    }


def _row(
    suite: Suite,
    run: Path,
    found: dict[int, tuple[str, Image.Image]],
    scores: dict[str, dict[int, float]],
    real: np.ndarray | None,
) -> dict[str, Any]:
    from quality.frechet import frechet_distance

    row: dict[str, Any] = {"run": str(run), "images": len(found)}
    row |= {name: sum(values.values()) / len(values) for name, values in scores.items()}
    if real is not None:
        row["frechet"] = frechet_distance(suite.features([image for _, image in found.values()]), real)
    return row


def _paired(
    run: Path, mine: dict[str, dict[int, float]], against: Path, theirs: dict[str, dict[int, float]]
) -> dict[str, dict[str, float]]:
    """Paired quality ratios over the requests with an image in both replays.

    Raises:
        ConfigError: there are no such requests, or the other replay's quality is zero.
    """
    from quality.paired import paired_ratio

    found = {}
    for name, values in mine.items():
        both = sorted(values.keys() & theirs[name].keys())
        if not both:
            raise ConfigError(f"{run} and {against} have images of no request in common; replay the same trace")
        try:
            ratio = paired_ratio([values[i] for i in both], [theirs[name][i] for i in both])
        except ValueError as error:
            raise ConfigError(f"{against}: {name}: {error}") from None
        found[name] = {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "images": len(both)}
    return found

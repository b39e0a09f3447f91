"""Choose a threshold by measured quality: ``weir calibrate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from cli.terminal import JsonOption, error_exit, note, print_json, print_line, results
from weir.files import written_whole


def calibrate(
    evaluation: Annotated[Path, typer.Argument(help="The evaluation.json of `weir evaluate`.")] = Path(
        "runs/evaluation/evaluation.json"
    ),
    keep: Annotated[float, typer.Option(min=0, help="Share of all-heavy quality to keep.")] = 0.97,
    variant: Annotated[
        str | None,
        typer.Option(help="Lighter variant of the mix with the last one.", show_default="the first"),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile file to which to write the confidences and quality of every lighter variant."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which quality each threshold keeps, and write the measurements to a profile.

    Example: weir calibrate runs/evaluation/evaluation.json --keep 0.97
    """
    from quality.calibration import Calibration
    from weir.profiles import load_profile

    with error_exit():
        measured = Calibration.read(evaluation, variant)
        chosen = measured.least(keep)
        if profile is not None:
            known = load_profile(profile)
            variants = dict(known.variants)
            for key in known.keys[:-1]:
                of = Calibration.read(evaluation, None if key == known.keys[0] else key)
                update = {"confidences": of.confidences, "quality": of.profile(known.heavy.steps)}
                variants[key] = known.variants[key].model_copy(update=update)
            last = known.keys[-1]
            found = {"confidences": Calibration.last_confidences(evaluation, last) or known.heavy.confidences}
            variants[last] = known.heavy.model_copy(update=found)
            updated = known.model_copy(update={"variants": variants})
            with written_whole(profile) as draft:
                draft.write_text(json.dumps(updated.model_dump(mode="json"), indent=1) + "\n")
    rows = measured.table([i / 10 for i in range(11)])
    if as_json:
        print_json({"keep": keep, "chosen": asdict(chosen), "table": [asdict(row) for row in rows]})
        return
    table = Table(box=box.SIMPLE_HEAD, caption="quality: higher is better")
    for column in ("threshold", "light share", "quality", "of all-heavy"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(f"{row.threshold:.1f}", f"{row.light_share:.0%}", f"{row.quality:.3f}", f"{row.kept:.1%}")
    results.print(table)
    key = f"plan.thresholds.{variant}" if variant else "plan.threshold"
    print_line(
        f"threshold {chosen.threshold:.2f} keeps {chosen.kept:.1%} of all-heavy quality with {chosen.light_share:.0%} "
        f"of the images from the lighter variant; set it as `{key}` in the service file"
    )
    if profile is not None:
        note(f"confidences and quality are written to {profile}")

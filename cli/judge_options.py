"""The options that name a measure of quality, and what they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quality.suite import Judge
    from weir.config import FamilyConfig


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Options of a measure of single images."""

    judge: Annotated[
        str | None,
        typer.Option(
            help="Measure: attributes, clip, pick, or module:name of your own.",
            show_default="that of --clip or --pick, else attributes",
        ),
    ] = None
    clip: Annotated[
        str | None, typer.Option(help="CLIP as the measure: hub name or folder.", show_default="the family's")
    ] = None
    pick: Annotated[str | None, typer.Option(help="PickScore as the measure: hub name or folder.")] = None

    def load(self, family: FamilyConfig) -> tuple[Judge, str]:
        """The measure, and its kind with the name of its model, for records.

        Raises:
            ConfigError: the options name different measures, or one that cannot be loaded.
        """
        from quality.suite import load_judge, named_measure
        from workers.models.device import device_of

        kind, models = named_measure(self.judge, self.clip, self.pick)
        judge = load_judge(family, kind, clip=self.clip, pick=self.pick, device=str(device_of(family)))
        return judge, " ".join((kind, *models))

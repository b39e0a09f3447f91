"""What every command shares: the terminal, the exit codes, and the options that mean the same everywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from weir.errors import ConfigError, InvalidRequest, PlanError, ServiceError, WeirError

#: Takes nothing as markup: what it prints quotes what users wrote.
console = Console(stderr=True, markup=False, highlight=False, emoji=False)

FamilyOption = Annotated[Path, typer.Option(help="Family file.", show_default="the embedded family")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@contextmanager
def answered() -> Iterator[None]:
    """Turns every failure that has a name into one line on standard error and an exit code."""
    try:
        yield
    except WeirError as error:
        console.print(Text.assemble(("error:", "bold red"), f" {error.message}"), soft_wrap=True)
        wrong_usage = isinstance(error, ConfigError | InvalidRequest | PlanError | ServiceError)
        raise typer.Exit(2 if wrong_usage else 1) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None


def say(line: str, *, bold: str = "") -> None:
    """One line, unbroken: names of files can be copied from it.

    Args:
        bold: what stands before it, in bold.
    """
    console.print(Text.assemble((bold, "bold"), line), soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


@contextmanager
def progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield bar

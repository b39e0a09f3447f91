"""Shared parts of all commands: the console, exit codes, and common options."""

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

#: Standard error, for progress, notes and errors. Without markup, because messages quote the user's input.
console = Console(stderr=True, markup=False, highlight=False, emoji=False)
#: Standard output, for results.
results = Console(markup=False, highlight=False, emoji=False)

#: What to do about a key that is missing or unknown.
KEY_REMEDY = "`weir` reads the key from WEIR_API_KEY"

FamilyOption = Annotated[Path, typer.Option(help="Family file.", show_default="the embedded family")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@contextmanager
def error_exit() -> Iterator[None]:
    """Context manager that turns a :class:`WeirError` into a message on standard error and an exit code."""
    try:
        yield
    except WeirError as error:
        console.print(Text.assemble(("error:", "bold red"), f" {error.message}"), soft_wrap=True)
        wrong_usage = isinstance(error, ConfigError | InvalidRequest | PlanError | ServiceError)
        raise typer.Exit(2 if wrong_usage else 1) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None


def print_line(line: str, *, bold: str = "") -> None:
    """Prints one line of a result on standard output, without wrapping, so that file names can be copied.

    Args:
        bold: bold text before the line.
    """
    results.print(Text.assemble((bold, "bold"), line), soft_wrap=True)


def note(line: str, *, bold: str = "") -> None:
    """Prints one line about the progress of a command on standard error, otherwise as :func:`print_line`."""
    console.print(Text.assemble((bold, "bold"), line), soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


@contextmanager
def progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield bar

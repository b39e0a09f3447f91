"""Check a file before it is used: ``weir check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import JsonOption, error_exit, print_json, print_line


def check(
    file: Annotated[
        Path,
        typer.Argument(
            help="Service, family, profile, ladder, keys, trace, plan, cache profile, level head, or dashboard folder."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what is wrong with a file, or what it contains. The kind of file is recognised by its content.

    Example: weir check deploy/configs/weir-tiny.yaml
    """
    from deploy.check import check as look
    from weir.errors import WeirError

    with error_exit():
        try:
            found = look(file)
        except WeirError as error:
            if as_json:
                print_json({"file": str(file), "ok": False, "problems": error.message.splitlines()})
                raise typer.Exit(2) from None
            raise
    if as_json:
        print_json({"file": str(file), "ok": True, "kind": found.kind, "says": found.details})
        return
    print_line(f": a {found.kind}, and nothing is wrong with it", bold=str(file))
    for line in found.details:
        print_line(f"  {line}")

"""Look at a file before it is used: ``weir check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import JsonOption, answered, print_json, say


def check(
    file: Annotated[
        Path,
        typer.Argument(
            help="Service, family, profile, ladder, keys, trace, plan, cache profile, head, or dashboards' folder."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with a file, or what it does. Its content tells what it is.

    Example: weir check deploy/configs/weir-tiny.yaml
    """
    from deploy.check import check as look
    from weir.errors import WeirError

    with answered():
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
    say(f": a {found.kind}, and nothing is wrong with it", bold=str(file))
    for line in found.details:
        say(f"  {line}")

"""The command line: registers all commands. Each module of ``cli`` imports what it needs when a command runs.

Exit codes: 0 success; 1 failure while running; 2 wrong usage or configuration; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import admin, cache, calibrate, check, family, generate, keys, levels, plan, score, serve, trace
from weir import __version__

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that torchvision is missing, which is not needed


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"weir {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="weir",
    help="Serves text-to-image diffusion models at the best quality that a deadline and a set of GPUs allow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (
    serve.up,
    serve.down,
    serve.render,
    serve.status,
    serve.logs,
    serve.monitor,
    check.check,
    generate.generate,
    trace.replay,
    score.score,
    plan.plan,
    plan.simulate,
    plan.compare,
    plan.cascades,
    family.fetch,
    family.profile,
    family.train,
    family.evaluate,
    calibrate.calibrate,
):
    app.command()(command)
app.add_typer(admin.app, name="admin")
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
app.add_typer(levels.app, name="levels")

if __name__ == "__main__":
    app()

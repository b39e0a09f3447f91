"""The command line: registers all commands. Each module of ``cli`` imports what it needs when a command runs.

Exit codes: 0 success; 1 failure while running; 2 wrong usage or configuration; 130 interrupted.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from typing import Annotated, NoReturn

try:
    import typer

    from cli import admin, adopt, cache, calibrate, check, family, generate, keys, levels, plan, score, serve, trace
    from weir import __version__
except KeyboardInterrupt:  # the imports take long enough to press Ctrl-C
    sys.exit(130)

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
    trace.report,
    score.score,
    plan.plan,
    plan.simulate,
    plan.compare,
    plan.cascades,
    family.fetch,
    adopt.adopt,
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


def _reflow(commands: typer.Typer) -> None:
    """Joins the lines of each paragraph of the help, which the terminal then wraps at its own width."""
    for command in commands.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in text.split("\n\n"))
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _reflow(group.typer_instance)


_reflow(app)


def main() -> None:
    """Entry point: runs a command, and says in one sentence that a disk or the memory is full."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it is closed, and a file of ours must not get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names and prompts may have characters that the locale lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit:
        _end_output()
        raise
    except OSError as error:
        _fail(f"{error.filename or 'the output'}: {error.strerror or error}")
    except MemoryError as error:
        _fail(f"the memory is full: {error or 'end other work, or use a larger machine'}")


def _end_output() -> None:
    """Writes what is left of standard output; otherwise Python would do it after the last error was handled."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _fail("")
    except OSError as error:
        _fail(f"the output: {error.strerror}")


def _fail(problem: str) -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of the output cannot be written
    if problem:
        sys.stderr.write(f"error: {problem}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()

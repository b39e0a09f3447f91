"""Who may call a service: ``weir keys …``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import JsonOption, answered, print_json, say
from weir.config import KeyConfig, load_keys
from weir.errors import ConfigError

app = typer.Typer(help="Make and list the keys of the API's callers.", no_args_is_help=True)

FileOption = Annotated[Path, typer.Option("--file", help="Keys file; a service names it in keys_file.")]


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Of the caller; shown in `weir keys list`.")],
    tenant: Annotated[str, typer.Option(help="Whose cached states it may reuse.")] = "public",
    file: FileOption = Path("keys.yaml"),
    batch: Annotated[bool, typer.Option("--batch", help="May wait for those who cannot.")] = False,
    images_per_minute: Annotated[float | None, typer.Option(help="At most; none: as many as fit.")] = None,
    concurrent_images: Annotated[int | None, typer.Option(help="At most; none: as many as fit.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May see and cancel the requests of every key.")] = False,
) -> None:
    """Make a key, print it once, and keep only its digest. A running service knows it a second later.

    Example: weir keys new --name alice --tenant acme --images-per-minute 60
    """
    from pydantic import ValidationError

    from load_balancer.http.api_keys import append_key, digest, new_key

    with answered():
        key = new_key()
        try:
            entry = KeyConfig(
                name=name,
                sha256=digest(key),
                tenant=tenant,
                priority="batch" if batch else "interactive",
                images_per_minute=images_per_minute,
                concurrent_images=concurrent_images,
                admin=admin,
            )
        except ValidationError as error:
            problem = error.errors()[0]
            option = str(problem["loc"][0]).replace("_", "-")
            raise ConfigError(f"--{option}: {problem['msg']} (given: {problem['input']!r})") from None
        append_key(file, entry)
        sys.stdout.write(key + "\n")
        say(f"the key of {name} is above, for the first and last time; its digest is in {file}")


@app.command("list")
def list_keys(file: FileOption = Path("keys.yaml"), as_json: JsonOption = False) -> None:
    """Say who may call, and how much. Delete an entry of the file to revoke its key.

    Example: weir keys list --file keys.yaml
    """
    with answered():
        known = load_keys(file).keys
    if as_json:
        print_json([key.model_dump(exclude={"sha256"}) for key in known])
        return
    for key in known:
        limits = ", ".join(
            f"{value:g} {what}"
            for value, what in ((key.images_per_minute, "images/min"), (key.concurrent_images, "at once"))
            if value is not None
        )
        scope = "admin, " if key.admin else ""
        say(f": tenant {key.tenant}, {scope}{key.priority}, {limits or 'no limits'}", bold=key.name)

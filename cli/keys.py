"""API keys of a service: ``weir keys …``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import JsonOption, error_exit, note, print_json, print_line
from weir.config import KeyConfig, load_keys
from weir.errors import ConfigError
from weir.moderation import Moderation

app = typer.Typer(help="Create and list API keys.", no_args_is_help=True)

FileOption = Annotated[Path, typer.Option("--file", help="Keys file, which a service names in keys_file.")]


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Name of the client, shown in `weir keys list`.")],
    tenant: Annotated[str, typer.Option(help="Tenant whose cached states the client shares.")] = "public",
    file: FileOption = Path("keys.yaml"),
    batch: Annotated[bool, typer.Option("--batch", help="Low priority: requests wait for interactive ones.")] = False,
    images_per_minute: Annotated[float | None, typer.Option(help="Largest number of images per minute.")] = None,
    concurrent_images: Annotated[int | None, typer.Option(help="Largest number of images at once.")] = None,
    moderation: Annotated[
        Moderation | None, typer.Option(help="How strictly its requests are moderated.", show_default="the service's")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="May see and cancel every request, and use `weir admin`.")
    ] = False,
) -> None:
    """Create a key, print it once, and store only its digest. A running service reads it within a second.

    Example: weir keys new --name alice --tenant acme --images-per-minute 60
    """
    from pydantic import ValidationError

    from load_balancer.http.api_keys import append_key, digest, new_key

    with error_exit():
        key = new_key()
        try:
            entry = KeyConfig(
                name=name,
                sha256=digest(key),
                tenant=tenant,
                priority="batch" if batch else "interactive",
                images_per_minute=images_per_minute,
                concurrent_images=concurrent_images,
                moderation=moderation,
                admin=admin,
            )
        except ValidationError as error:
            problem = error.errors()[0]
            option = str(problem["loc"][0]).replace("_", "-")
            raise ConfigError(f"--{option}: {problem['msg']} (given: {problem['input']!r})") from None
        append_key(file, entry)
        sys.stdout.write(key + "\n")
        note(f"the key of {name} is above and is not shown again; its digest is in {file}")


@app.command("list")
def list_keys(file: FileOption = Path("keys.yaml"), as_json: JsonOption = False) -> None:
    """List keys and their limits. Delete an entry of the file to revoke its key.

    Example: weir keys list --file keys.yaml
    """
    with error_exit():
        if not file.exists():
            raise ConfigError(f"{file}: there is no such file; `weir keys new` creates it, and --file names another")
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
        scope += f"moderation {key.moderation}, " if key.moderation is not None else ""
        print_line(f": tenant {key.tenant}, {scope}{key.priority}, {limits or 'no limits'}", bold=key.name)

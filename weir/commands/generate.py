"""One image in this process: ``weir generate``."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from weir.commands.terminal import FAMILY, FamilyOption, JsonOption, answered, console, print_json
from weir.config import load_family
from weir.core import Role
from weir.errors import ConfigError


def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    out: Annotated[Path, typer.Option(help="File to write, PNG.")] = Path("image.png"),
    family: FamilyOption = FAMILY,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Default: a random one, printed.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Confidence below which it is redone.")] = 0.5,
    variant: Annotated[Role | None, typer.Option(help="Force one variant instead of the cascade.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the image should not show.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of the heavy variant.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of the heavy variant.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one image in this process, without a cluster.

    Example: weir generate "a red circle" --out a.png
    """
    from workers.generate import generate as draw

    with answered():
        if not prompt.strip():
            raise ConfigError("the prompt is empty; say what the image should show")
        if not out.parent.is_dir():
            raise ConfigError(f"--out: there is no folder {out.parent}")
        with console.status("drawing"):
            drawn = draw(
                load_family(family),
                prompt,
                seed=random.randrange(2**32) if seed is None else seed,
                threshold=threshold,
                role=variant,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                threads=1,
            )
        _write_whole(out, drawn.image)
    facts = {k: v for k, v in asdict(drawn).items() if k != "image"} | {"file": str(out)}
    if as_json:
        print_json(facts)
    else:
        sure = "" if drawn.confidence is None else f", light confidence {drawn.confidence:.2f}"
        console.print(f"{out}: {drawn.model}, {drawn.steps} steps, seed {drawn.seed}{sure}", highlight=False)


def _write_whole(path: Path, data: bytes) -> None:
    """Writes the file whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)

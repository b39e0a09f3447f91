"""One image in this process: ``weir generate``."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import FamilyOption, JsonOption, answered, console, print_json, say
from weir.assets import CACHE_PROFILE, FAMILY
from weir.config import CacheConfig, load_family
from weir.core import Role
from weir.errors import ConfigError
from weir.files import check_place, written_whole


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
    cache: Annotated[
        Path | None, typer.Option(help="File of earlier runs: go on from a similar one, and add this one.")
    ] = None,
    selector: Annotated[
        str | None, typer.Option(help="Thresholds: a published name, or a cache profile.", show_default="the family's")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one image in this process, without a cluster.

    Example: weir generate "a red circle" --out a.png
    """
    from cache.local import LocalCache
    from workers.generate import generate as draw
    from workers.models.judges import family_judge

    with answered():
        if not prompt.strip():
            raise ConfigError("the prompt is empty; say what the image should show")
        check_place(out)
        config = load_family(family)
        with console.status("drawing"):
            kept = None
            if cache is not None:
                thresholds = selector or (str(CACHE_PROFILE) if family == FAMILY else "nirvana")
                kept = LocalCache(CacheConfig(mode="read-write", selector=thresholds), config, cache, family_judge)
            drawn = draw(
                config,
                prompt,
                seed=random.randrange(2**32) if seed is None else seed,
                threshold=threshold,
                role=variant,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                threads=1,
                cache=kept,
            )
            if kept is not None:
                kept.save()
        with written_whole(out) as draft:
            draft.write_bytes(drawn.image)
    facts = {k: v for k, v in asdict(drawn).items() if k != "image"} | {"file": str(out)}
    if as_json:
        print_json(facts)
    else:
        sure = "" if drawn.confidence is None else f", light confidence {drawn.confidence:.2f}"
        resumed = f" on from step {drawn.resumed_at} of an earlier run" if drawn.resumed_at else ""
        say(f"{out}: {drawn.model}, {drawn.steps} steps{resumed}, seed {drawn.seed}{sure}")

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
from weir.errors import ConfigError
from weir.files import check_place, written_whole


def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    out: Annotated[Path, typer.Option(help="File to write, PNG.")] = Path("image.png"),
    family: FamilyOption = FAMILY,
    seed: Annotated[int | None, typer.Option(min=-1, max=2**64 - 1, help="Else a random one, printed.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence below which the next variant generates it.")
    ] = 0.5,
    variant: Annotated[
        str | None, typer.Option(help="Force one variant of the family instead of the cascade, e.g. light.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the image should not show.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of the last variant.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of the last variant.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File of earlier runs: resume from a similar one, and add this one.")
    ] = None,
    selector: Annotated[
        str | None, typer.Option(help="Thresholds: a published name, or a cache profile.", show_default="the family's")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Generate one image in this process, without a cluster.

    Example: weir generate "a red circle" --out a.png
    """
    from cache.local import LocalCache
    from workers.generate import generate as generated
    from workers.models.judges import family_judge

    with answered():
        if not prompt.strip():
            raise ConfigError("the prompt is empty; say what the image should show")
        check_place(out)
        config = load_family(family)
        if variant is not None and variant not in config.keys:
            raise ConfigError(f"--variant is {variant!r}; {config.name} has {', '.join(config.keys)}")
        with console.status("generating"):
            kept = None
            if cache is not None:
                thresholds = selector or (str(CACHE_PROFILE) if family == FAMILY else "nirvana")
                kept = LocalCache(CacheConfig(mode="read-write", selector=thresholds), config, cache, family_judge)
            made = generated(
                config,
                prompt,
                seed=random.randrange(2**32) if seed in (None, -1) else seed,
                threshold=threshold,
                variant=variant,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                threads=1,
                cache=kept,
            )
            if kept is not None:
                kept.save()
        with written_whole(out) as draft:
            draft.write_bytes(made.image)
    facts = {k: v for k, v in asdict(made).items() if k != "image"} | {"file": str(out)}
    if as_json:
        print_json(facts)
    else:
        verdicts = "".join(f", confidence in {key} {value:.2f}" for key, value in made.confidences.items())
        resumed = f" resumed at step {made.resumed_at} of an earlier run" if made.resumed_at else ""
        say(f"{out}: {made.model}, {made.steps} steps{resumed}, seed {made.seed}{verdicts}")

"""Compares the step loop with diffusers' own pipelines of FLUX.1, Stable Diffusion 3.5 and Z-Image, on the CPU.

    python -m benchmarks.diffusion_transformers

The models are small and have random weights, so that only the ratios count. Requests, ways of serving them and figures
are those of :mod:`benchmarks.engine`. Pipelines of transformers have no ``denoising_start``: they resume from a state
by the noise levels that are left, as ``sigmas``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.engine import Bench, _show, equality, mixed, uniform
from testing.tiny_transformers import flux_pipeline, sd3_pipeline, z_image_pipeline
from weir.config import FamilyConfig
from weir.core import ImageRequest
from weir.states import State
from workers.models.family import Family

#: Builder of the pipeline, and the guidance scale of the heavy variant.
KINDS: dict[str, tuple[Callable[..., Any], float]] = {
    "flux": (flux_pipeline, 3.5),
    "stable-diffusion-3.5": (sd3_pipeline, 3.5),
    "z-image": (z_image_pipeline, 4.0),
}


class TransformerBench(Bench):
    """One family twice: in the engine, and as an unmodified pipeline of a transformer."""

    def __init__(self, config: FamilyConfig, engine: Family, pipeline: Any):
        self.config, self.engine, self.pipeline = config, engine, pipeline
        pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance, self.size = config.heavy.steps, config.heavy.guidance, config.size

    @property
    def packs(self) -> bool:
        """Whether the pipeline packs its latents."""
        return hasattr(self.pipeline, "_pack_latents")

    def piped(self, requests: Sequence[ImageRequest], output: str = "np", **how: Any) -> Any:
        generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        images = self.pipeline(
            prompt=[r.prompt for r in requests],
            **self.size._asdict(),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=generators,
            output_type=output,
            **how,
        ).images
        if output != "latent" or not self.packs:
            return images
        return self.pipeline._unpack_latents(images, *reversed(self.size), self.pipeline.vae_scale_factor)

    def resumed(self, requests: Sequence[ImageRequest], states: Sequence[State]) -> Any:
        latents = torch.from_numpy(np.stack([s.latent for s in states])).float()
        if self.packs:
            latents = self.pipeline._pack_latents(latents, *latents.shape)
        scheduler = self.pipeline.scheduler
        # those of the engine's steps before the shift, which the scheduler applies again
        last = 1 / self.steps if type(self.pipeline).__name__ != "StableDiffusion3Pipeline" else scheduler.sigma_min
        first = 1.0 if last == 1 / self.steps else scheduler.sigma_max
        levels = np.linspace(first, last, self.steps)[states[0].step :].tolist()
        return self.piped(requests, latents=latents, sigmas=levels)


def bench_of(kind: str, steps: int, size: int) -> TransformerBench:
    """Builds a small model of a kind, once for each side."""
    build, guidance = KINDS[kind]
    variant = {"scheduler": "flow-euler", "steps": steps, "guidance": guidance}
    config = FamilyConfig.model_validate(
        {
            "name": kind,
            "pipeline": "none",
            "size": size,
            "device": "cpu",
            "light": variant | {"name": "light"},
            "heavy": variant | {"name": "heavy"},
        }
    )
    engine = Family(config, dict.fromkeys(config.keys, build(heads=4, layers=2)))
    return TransformerBench(config, engine, build(heads=4, layers=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels; a patch has 4")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32, help="number of images of the mixed load")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, figures = Console(width=120), {}
    for kind in arguments.kinds:
        bench = bench_of(kind, arguments.steps, arguments.size)
        bench.looped(bench.jobs(bench.requests(1)), 1)
        bench.piped(bench.requests(1))
        equal = equality(bench)["flow-euler"]
        table = Table(*equal, title=f"{kind}: max |Δ latent|")
        table.add_row(*(f"{value:.2g}" for value in equal.values()))
        console.print(table)
        batch = str(arguments.batch)
        loads = {f"{batch}: a full batch from step 0": uniform(bench, arguments.batch, arguments.rounds)}
        different = mixed(bench, arguments.batch, arguments.rounds, arguments.images)
        loads |= {f"{batch}: mixed, {name}": row for name, row in different.items()}
        _show(console, f"{kind}: uniform and mixed load", loads)
        figures[kind] = {"equality": equal, "loads": loads}
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    command(main)

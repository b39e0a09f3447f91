"""Holds images of SDXL's full architecture against those of diffusers' own pipelines: text to image, edits, adapters.

    python -m benchmarks.equality [--small] [--steps 3] [--side 128] [--only edit] [--out equality.json]

The weights are random, in float32 on the CPU, and the images small, so that the whole table takes about half an hour
and 17 GB on one core (``--small``: a small model, seconds). Each row has the largest difference between the finished
latents of both, from the same seed. Beside it, for scale: the largest value of diffusers' latent, and the largest
difference between it and that of the first row, which shows what the sampler, prompt or adapter of the row does.
Differences to diffusers come from rounding: the order of operations is another.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks import command
from testing.pictures import gradient, mask, png
from testing.random_adapters import Tensors, random_adapter, write_peft
from testing.sdxl_architecture import SMALL, pipeline
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import FamilyConfig
from weir.core import Edit, ImageRequest, ImageSize, Overrides
from weir.plan import HEAVY
from weir.samplers import Scheduler
from workers.engine.engine import denoise_job
from workers.engine.samplers import TCD_GAMMA, scheduler_for
from workers.models.family import Family

PROMPT, NEGATIVE, SEED, GUIDANCE = "a red fox in the snow", "blur", 7, 5.0
#: 20 words of 5 tokens; a window has 75 tokens.
LONG = "abcde " * 20
WINDOWS = ("abcde " * 15, "abcde " * 5)


@dataclass(frozen=True, slots=True)
class Case:
    """One image to compare.

    Attributes:
        windows: the parts of its prompt that the text encoders read apart; empty: the prompt fits one window.
        adapters: scales of LoRA adapters, by name.
        strength: that of an edit; None: the image has no picture to start from.
        masked: whether the edit has a mask.
    """

    name: str
    size: ImageSize
    sampler: Scheduler = "euler"
    windows: tuple[str, ...] = ()
    adapters: Mapping[str, float] = field(default_factory=dict)
    strength: float | None = None
    masked: bool = False


def cases(side: int) -> Iterator[Case]:
    """Every case, with squares of a side, and two other shapes."""
    square, wide, tall = ImageSize(side, side), ImageSize(side * 3 // 2, side), ImageSize(side, side * 3 // 2)
    for size in (square, wide, tall):
        yield Case(f"text to image, {size}", size)
    for sampler in get_args(Scheduler):
        yield Case(f"sampler {sampler}", square, sampler)
    yield Case("prompt of two windows", square, windows=WINDOWS)
    yield Case("LoRA adapter at 0.7", square, adapters={"first": 0.7})
    yield Case("LoRA adapters at 0.7 and -0.4", square, adapters={"first": 0.7, "second": -0.4})
    yield Case("edit at strength 0.7", wide, strength=0.7)
    yield Case("edit at strength 1 with a mask", square, strength=1.0, masked=True)
    yield Case("edit at strength 0.7 with a mask", tall, strength=0.7, masked=True)
    yield Case("edit at strength 0.7 with an adapter at 0.7", square, adapters={"first": 0.7}, strength=0.7)


class Reference:
    """Diffusers' pipelines and this project's engine over the same weights.

    Args:
        folder: for the files of the adapters.
    """

    def __init__(self, whole: Any, side: int, steps: int, folder: Path):
        self.whole, self.steps = whole, steps
        _read_prompts(whole)
        whole.set_progress_bar_config(disable=True)
        self.adapters: dict[str, Tensors] = {
            name: random_adapter(whole, seed, strength=0.05) for seed, name in enumerate(("first", "second"))
        }
        self._files = {name: write_peft(it, folder / f"{name}.safetensors") for name, it in self.adapters.items()}
        self._side = side

    def ours(self, case: Case) -> torch.Tensor:
        """The finished latent [C, H/8, W/8] of this project's engine."""
        family = Family(_config(self._side, self.steps, case.sampler), {"light": self.whole, HEAVY: self.whole})
        uses = [AdapterUse(it, scale, AdapterWeights(str(self._files[it]))) for it, scale in case.adapters.items()]
        request = ImageRequest(
            "equality",
            LONG if case.windows else PROMPT,
            SEED,
            case.size,
            float("inf"),
            negative_prompt=NEGATIVE,
            overrides=Overrides(steps=self.steps, guidance=GUIDANCE, sampler=case.sampler),
            adapters=tuple(uses),
        )
        if case.strength is not None:
            covers = png(mask(case.size)) if case.masked else None
            request = replace(request, edit=Edit(png(gradient(case.size)), covers, case.strength))
        [sample] = family.begin([denoise_job(family.config, HEAVY, request)])
        if isinstance(sample, Exception):
            raise sample
        while sample.step < self.steps:
            [error] = family.step([sample])
            if error is not None:
                raise error
        return sample.latent

    def theirs(self, case: Case) -> torch.Tensor:
        """The finished latent [C, H/8, W/8] of diffusers' own pipeline."""
        kind = {None: "", False: "Img2Img", True: "Inpaint"}[None if case.strength is None else case.masked]
        whole = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")(**self.whole.components)
        whole.set_progress_bar_config(disable=True)
        whole.scheduler = scheduler_for(case.sampler, self.whole.scheduler.config)
        for name in case.adapters:
            whole.load_lora_weights(dict(self.adapters[name]), adapter_name=name)
        if case.adapters:
            whole.set_adapters(list(case.adapters), list(case.adapters.values()))
        try:
            latent = whole(
                **self._prompts(case),
                **_pictures(case),
                num_inference_steps=self.steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(SEED),
                eta=TCD_GAMMA if case.sampler == "tcd" else 0.0,
                output_type="latent",
            ).images[0]
        finally:
            if case.adapters:
                whole.unload_lora_weights()
        return torch.as_tensor(latent)

    def _prompts(self, case: Case) -> dict[str, Any]:
        """The prompt as diffusers' pipelines take it: a text, or the encodings of its windows one after the other."""
        if not case.windows:
            return {"prompt": PROMPT, "negative_prompt": NEGATIVE}
        negatives = [NEGATIVE, *[""] * (len(case.windows) - 1)]
        encoded = [
            self.whole.encode_prompt(prompt=prompt, negative_prompt=negative)
            for prompt, negative in zip(case.windows, negatives, strict=True)
        ]
        return {
            "prompt_embeds": torch.cat([it[0] for it in encoded], 1),
            "negative_prompt_embeds": torch.cat([it[1] for it in encoded], 1),
            "pooled_prompt_embeds": encoded[0][2],
            "negative_pooled_prompt_embeds": encoded[0][3],
        }


def _read_prompts(whole: Any) -> None:
    """Scales random weights so that prompts matter: untouched, they change the denoiser's output by a thousandth."""
    for encoder in (whole.text_encoder, whole.text_encoder_2):
        encoder.get_input_embeddings().weight *= 50
    for name, layer in whole.unet.named_modules():
        if re.search(r"attn2\.to_(v|out\.0)$", name):
            layer.weight *= 4


def _config(side: int, steps: int, sampler: Scheduler) -> FamilyConfig:
    """A family of the pipeline's size, whose last variant runs a sampler."""
    variants = {key: {"name": key, "scheduler": sampler, "steps": steps, "guidance": 1} for key in ("light", HEAVY)}
    sizes = [f"{side * 3 // 2}x{side}", f"{side}x{side * 3 // 2}"]
    return FamilyConfig.model_validate({"name": "random", "pipeline": "-", "size": side, "sizes": sizes, **variants})


def _pictures(case: Case) -> dict[str, Any]:
    """The size of the image, and what an edit starts from."""
    if case.strength is None:
        return {"width": case.size.width, "height": case.size.height}
    given = {"image": Image.open(io.BytesIO(png(gradient(case.size)))), "strength": case.strength}
    if not case.masked:
        return given
    return {**given, "mask_image": mask(case.size), "width": case.size.width, "height": case.size.height}


def _be_quiet() -> None:
    """Silences what libraries say of random weights and of adapters in memory."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # PEFT's, of two adapters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small model of the same architecture")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps of each image")
    parser.add_argument("--side", type=int, default=128, help="side of the squares, pixels; a multiple of 16")
    parser.add_argument("--only", default="", help="the cases whose name matches this regular expression")
    parser.add_argument("--out", type=Path, default=Path("equality.json"), help="results as JSON")
    args = parser.parse_args()
    _be_quiet()
    console, rows = Console(width=100), {}
    chosen = [case for case in cases(args.side) if re.search(args.only, case.name)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        whole = pipeline("cpu", dtype=torch.float32, **(SMALL if args.small else {}))
        both = Reference(whole, args.side, args.steps, Path(folder))
        plain = both.theirs(next(cases(args.side)))
        for case in chosen:
            ours, theirs = both.ours(case), both.theirs(case)
            rows[case.name] = {
                "difference": float((ours - theirs).abs().max()),
                "largest": float(theirs.abs().max()),
                "from_first": float((theirs - plain).abs().max()) if theirs.shape == plain.shape else None,
            }
            console.print(f"{len(rows)}/{len(chosen)} {case.name}", highlight=False)
            args.out.write_text(json.dumps(rows, indent=1))
    table = Table("case", "to diffusers", "largest value", "to the first row", title="finished latents")
    for name, row in rows.items():
        beside = "" if row["from_first"] is None else f"{row['from_first']:.2f}"
        table.add_row(name, f"{row['difference']:.1e}", f"{row['largest']:.1f}", beside)
    console.print(table)


if __name__ == "__main__":
    command(main)

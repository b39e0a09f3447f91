"""The whole training recipe, from a seed to the folder of weights, for ``make train`` and ``weir train``.

Every stage can be resumed: a part with a complete checkpoint is loaded, and a stopped one continues. Budgets are in
steps, so that two machines train the same models, up to their floating-point arithmetic.

A run can also continue the training of an existing family (``weir train --start``). It keeps the family's encoders,
autoencoder and checker, on which the other parts depend, and trains those of the UNets, the decoder and the
discriminator for which the budget has steps.
"""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTokenizer

from quality.checker import AttributeChecker
from training import dataset
from training.checker import train_checker
from training.clip import Encoders, embed_prompts, token_ids, train_encoders
from training.dataset import SceneData
from training.denoiser import (
    LIGHT_TIMESTEPS,
    LatentData,
    Trajectories,
    distil,
    new_scheduler,
    train_denoiser,
    trajectories,
)
from training.detection import centre_labels
from training.discriminator import train_discriminator
from training.export import (
    CHECKER,
    CLIP,
    DISCRIMINATOR,
    LIGHT_UNET,
    PIPELINE,
    export_encoders,
    export_pipeline,
    load_encoders,
)
from training.judging import LIGHT_STEPS, detect_on_light_images
from training.loop import Schedule
from training.tokenizer import new_tokenizer
from training.vae import encode_all, refine_decoder, train_vae
from weir.errors import ConfigError
from workers.models.discriminator import Discriminator


@dataclass(frozen=True)
class Budget:
    """Amounts of data and training.

    ``*_steps`` are optimiser steps; ``batch`` is the batch size of the denoisers; ``taught`` and ``seen`` are the
    numbers of captions for the distillation and for the discriminator. A UNet with 0 steps is copied from the family
    that the run starts from.
    """

    scenes: int = 60_000
    encoder_steps: int = 1_400
    checker_steps: int = 1_500
    vae_steps: int = 1_600
    heavy_steps: int = 22_000
    decoder_steps: int = 1_000
    taught: int = 2_048
    light_steps: int = 500
    seen: int = 18_000
    judging_steps: int = 2_200
    batch: int = 32

    @property
    def needs_start(self) -> bool:
        return not (self.heavy_steps and self.light_steps)


#: ``smoke`` runs every stage within two minutes and learns nothing; ``discriminator`` trains only the discriminator.
BUDGETS = {
    "full": Budget(),
    "smoke": Budget(1_000, 3, 3, 3, 3, 3, 32, 3, 64, 3, 8),
    "discriminator": Budget(heavy_steps=0, decoder_steps=0, light_steps=0),
}

#: Shares of scenes with one to four objects: more scenes with many objects than prompts have, because they are hard.
SHARES = (0.20, 0.32, 0.26, 0.22)
TEACHER_STEPS = 12
GUIDANCE = 3.0
_SYLLABLES = (
    "ba", "ko", "dragon", "tu", "castle", "ri", "sun", "set", "over", "the", "ocean", "por", "trait", "of", "cat", "in",
    "oil", "night", "city", "forest", "with", "light", "sky", "man", "photo", "el", "za", "mo", "river", "dog",
)  # fmt: skip


@dataclass(frozen=True)
class Shipped:
    """The parts of an existing family, in fp32."""

    encoders: Encoders
    checker: AttributeChecker
    vae: AutoencoderKL
    heavy: UNet2DConditionModel
    light: UNet2DConditionModel
    discriminator: Discriminator

    @classmethod
    def load(cls, folder: Path, device: str) -> Shipped:
        """Loads a family that :func:`train_family` wrote.

        Raises:
            ConfigError: the folder has no such family, or parts of it are missing.
        """
        try:
            parts: dict[str, Any] = {
                "encoders": load_encoders(folder),
                "vae": AutoencoderKL.from_pretrained(
                    folder / PIPELINE / "vae", torch_dtype=torch.float32, use_safetensors=True
                ),
                "heavy": UNet2DConditionModel.from_pretrained(
                    folder / PIPELINE / "unet", torch_dtype=torch.float32, use_safetensors=True
                ),
                "light": UNet2DConditionModel.from_pretrained(
                    folder / LIGHT_UNET, torch_dtype=torch.float32, use_safetensors=True
                ),
            }
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{folder}: no family to start from ({error})") from None
        moved = {name: part.to(device).eval() for name, part in parts.items()}
        return cls(
            **moved,
            checker=AttributeChecker.load(folder / CHECKER, device),
            discriminator=Discriminator.load(folder / DISCRIMINATOR, device),
        )


def strange_texts(count: int, seed: int) -> list[str]:
    """Random texts outside the captions' grammar, with which the denoisers learn to generate arbitrary scenes."""
    rng = random.Random(seed)
    return [
        " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 8)))
        for _ in range(count)
    ]


def _latent_data(
    latents: np.ndarray,
    objects: np.ndarray,
    encoders: Encoders,
    ids: torch.Tensor,
    strange: torch.Tensor,
    work: Path,
    device: str,
) -> LatentData:
    path = work / "prompts.npz"
    if not path.exists():
        states, pooled = embed_prompts(encoders, ids.to(device))
        odd_states, odd_pooled = embed_prompts(encoders, strange.to(device))
        np.savez(path, states=states, pooled=pooled, odd_states=odd_states, odd_pooled=odd_pooled)
    kept = np.load(path, allow_pickle=False)
    parts = (latents, kept["states"], kept["pooled"], kept["odd_states"], kept["odd_pooled"])
    cells = centre_labels(objects)[0].numpy().astype(np.int8)
    return LatentData(*(torch.from_numpy(np.array(p)).to(device) for p in (*parts, cells)))


@torch.no_grad()
def teach(
    heavy: UNet2DConditionModel, data: LatentData, path: Path, *, count: int, seed: int, batch: int = 64
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Runs the heavy variant for the first ``count`` captions. Returns the latents that enter the light variant's
    timesteps, and the final latents; both are fp16 and stored at ``path``."""
    every = TEACHER_STEPS // len(LIGHT_TIMESTEPS)
    keep = tuple(i * every for i in range(len(LIGHT_TIMESTEPS)))
    scheduler = new_scheduler()
    scheduler.set_timesteps(TEACHER_STEPS)
    assert tuple(int(scheduler.timesteps[i]) for i in keep) == LIGHT_TIMESTEPS
    if not path.exists():
        generator = torch.Generator(device=data.latents.device).manual_seed(seed)
        ends, points = [], []
        for i in tqdm(range(0, count, batch), desc="teacher", unit="batch"):
            last = min(i + batch, count)
            states, pooled = data.states[i:last].float(), data.pooled[i:last].float()
            noise = torch.randn((len(states), *data.latents.shape[1:]), generator=generator, device=data.latents.device)
            end, kept = trajectories(heavy, noise, states, pooled, steps=TEACHER_STEPS, guidance=GUIDANCE, keep=keep)
            ends.append(end.half().cpu())
            points.append(torch.stack(kept).half().cpu())
        np.savez(path, end=torch.cat(ends).numpy(), points=torch.cat(points, 1).numpy())
    kept = np.load(path, allow_pickle=False)
    entering = torch.from_numpy(kept["points"]).to(data.latents.device)
    return list(entering), torch.from_numpy(kept["end"]).to(data.latents.device)


def train_family(
    out: Path,
    work: Path,
    *,
    budget: Budget,
    seed: int,
    device: str,
    start: Path | None = None,
    drawn_steps: int = LIGHT_STEPS,
) -> None:
    """Trains all parts and writes the family to ``out``; checkpoints and data stay in ``work``.

    Args:
        start: folder of a family whose training is continued.
        drawn_steps: denoising steps of the light images that the discriminator is trained on. With another number than
            the default, the light UNet is another light variant, which needs a discriminator of its own.

    Raises:
        ConfigError: the budget has no steps for a UNet and ``start`` is None, or ``start`` is not a family.
    """
    if start is None and budget.needs_start:
        raise ConfigError("this budget trains no UNets; name the family to copy them from with --start")
    shipped = Shipped.load(start, device) if start else None
    dataset.build(work / "scenes", budget.scenes, seed, shares=SHARES)
    data = dataset.load(work / "scenes")
    tokenizer = new_tokenizer()
    if shipped:  # the other parts depend on these, so they are not trained again
        encoders, checker, vae = shipped.encoders, shipped.checker, shipped.vae
    else:
        encoders = train_encoders(
            data,
            tokenizer,
            steps=budget.encoder_steps,
            batch=3 * budget.batch,
            seed=seed + 1,
            folder=work,
            device=device,
        )
        checker = train_checker(data, steps=budget.checker_steps, batch=48, seed=seed + 2, folder=work, device=device)
        vae = train_vae(data, steps=budget.vae_steps, batch=8, seed=seed, folder=work, device=device)
    heavy, light = _train_denoisers(shipped, vae, encoders, tokenizer, data, work, budget, seed, device)
    suffix = "" if drawn_steps == LIGHT_STEPS else f"-{drawn_steps}"
    seen = detect_on_light_images(
        light,
        vae,
        checker,
        encoders,
        tokenizer,
        data.captions,
        work / f"seen{suffix}.npz",
        count=budget.seen,
        seed=seed + 6,
        steps=drawn_steps,
    )
    discriminator = train_discriminator(
        data,
        seen,
        encoders.clip(),
        tokenizer,
        work,
        Schedule(steps=budget.judging_steps, batch=budget.batch, lr=1.5e-3, seed=seed + 8, ema=0.99, save_every=250),
        name=f"discriminator{suffix}",
        start=shipped.discriminator.net if shipped else None,
    )
    export_encoders(out, encoders, tokenizer)
    export_pipeline(out, encoders, tokenizer, vae, heavy, light)
    checker.save(out / CHECKER)
    discriminator.save(out / DISCRIMINATOR, f"../{CLIP}")


def _train_denoisers(
    shipped: Shipped | None,
    vae: AutoencoderKL,
    encoders: Encoders,
    tokenizer: CLIPTokenizer,
    data: SceneData,
    work: Path,
    budget: Budget,
    seed: int,
    device: str,
) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """Trains the heavy UNet, the decoder (which changes ``vae``) and the light UNet; returns the UNets."""
    if shipped and not budget.heavy_steps and not budget.light_steps:
        return shipped.heavy, shipped.light
    latents = encode_all(vae, data, work / "latents.npy", device=device)
    ids = token_ids(tokenizer, data.captions)
    strange = token_ids(tokenizer, strange_texts(512, seed))
    prompts = _latent_data(latents, data.objects, encoders, ids, strange, work, device)
    if shipped and not budget.heavy_steps:
        heavy = shipped.heavy
    else:
        heavy = train_denoiser(
            "heavy",
            prompts,
            work,
            Schedule(steps=budget.heavy_steps, batch=budget.batch, lr=1.2e-3, seed=seed + 3, ema=0.998),
            device,
            start=shipped.heavy if shipped else None,
        )
    if budget.decoder_steps:
        refine_decoder(vae, data, steps=budget.decoder_steps, batch=8, seed=seed, folder=work, device=device)
    entering, ends = teach(heavy, prompts, work / "teacher.npz", count=budget.taught, seed=seed)
    light = distil(
        deepcopy(shipped.light if shipped else heavy),
        Trajectories(LIGHT_TIMESTEPS, entering, ends, prompts.states[: len(ends)], prompts.pooled[: len(ends)]),
        work,
        Schedule(steps=budget.light_steps, batch=budget.batch, lr=6e-4, seed=seed + 5, flat=0.2, ema=0.995),
    )
    return heavy, light

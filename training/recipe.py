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
    Conditioning,
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
from training.judging import LIGHT_STEPS, LightPipeline, detect_on_light_images
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
            prompts = Conditioning(data.states[i:last].float(), data.pooled[i:last].float())
            noise = torch.randn((last - i, *data.latents.shape[1:]), generator=generator, device=data.latents.device)
            end, kept = trajectories(heavy, noise, prompts, steps=TEACHER_STEPS, guidance=GUIDANCE, keep=keep)
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
    run = _Training(shipped, dataset.load(work / "scenes"), new_tokenizer(), work, budget, seed, device)
    encoders, checker, vae = run.readers()
    heavy, light = run.denoisers(vae, encoders)
    discriminator = run.discriminator(LightPipeline(light, vae, encoders, run.tokenizer, drawn_steps), checker)
    export_encoders(out, encoders, run.tokenizer)
    export_pipeline(out, encoders, run.tokenizer, vae, heavy, light)
    checker.save(out / CHECKER)
    discriminator.save(out / DISCRIMINATOR, f"../{CLIP}")


@dataclass(frozen=True)
class _Training:
    """One run of the recipe: what its stages have in common.

    Attributes:
        shipped: the family whose training is continued; None: all parts are new.
        work: folder of the checkpoints.
        seed: every stage has a seed of its own, which follows from it.
    """

    shipped: Shipped | None
    data: SceneData
    tokenizer: CLIPTokenizer
    work: Path
    budget: Budget
    seed: int
    device: str

    def readers(self) -> tuple[Encoders, AttributeChecker, AutoencoderKL]:
        """The encoders, the checker and the autoencoder. The other parts depend on them, so those of an existing family
        are not trained again."""
        if self.shipped:
            return self.shipped.encoders, self.shipped.checker, self.shipped.vae
        budget = self.budget
        encoders = train_encoders(
            self.data,
            self.tokenizer,
            steps=budget.encoder_steps,
            batch=3 * budget.batch,
            seed=self.seed + 1,
            folder=self.work,
            device=self.device,
        )
        checker = train_checker(
            self.data, steps=budget.checker_steps, batch=48, seed=self.seed + 2, folder=self.work, device=self.device
        )
        vae = train_vae(
            self.data, steps=budget.vae_steps, batch=8, seed=self.seed, folder=self.work, device=self.device
        )
        return encoders, checker, vae

    def denoisers(self, vae: AutoencoderKL, encoders: Encoders) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
        """Trains the heavy UNet, the decoder (which changes ``vae``) and the light UNet; returns the UNets."""
        budget, shipped, work, seed = self.budget, self.shipped, self.work, self.seed
        if shipped and not budget.heavy_steps and not budget.light_steps:
            return shipped.heavy, shipped.light
        prompts = self._latent_data(vae, encoders)
        if shipped and not budget.heavy_steps:
            heavy = shipped.heavy
        else:
            heavy = train_denoiser(
                "heavy",
                prompts,
                work,
                Schedule(steps=budget.heavy_steps, batch=budget.batch, lr=1.2e-3, seed=seed + 3, ema=0.998),
                self.device,
                start=shipped.heavy if shipped else None,
            )
        if budget.decoder_steps:
            refine_decoder(
                vae, self.data, steps=budget.decoder_steps, batch=8, seed=seed, folder=work, device=self.device
            )
        entering, ends = teach(heavy, prompts, work / "teacher.npz", count=budget.taught, seed=seed)
        light = distil(
            deepcopy(shipped.light if shipped else heavy),
            Trajectories(LIGHT_TIMESTEPS, entering, ends, prompts.states[: len(ends)], prompts.pooled[: len(ends)]),
            work,
            Schedule(steps=budget.light_steps, batch=budget.batch, lr=6e-4, seed=seed + 5, flat=0.2, ema=0.995),
        )
        return heavy, light

    def _latent_data(self, vae: AutoencoderKL, encoders: Encoders) -> LatentData:
        """Latents and conditioning of all scenes, and of the strange texts."""
        latents = encode_all(vae, self.data, self.work / "latents.npy", device=self.device)
        path = self.work / "prompts.npz"
        if not path.exists():
            ids = token_ids(self.tokenizer, self.data.captions)
            strange = token_ids(self.tokenizer, strange_texts(512, self.seed))
            states, pooled = embed_prompts(encoders, ids.to(self.device))
            odd_states, odd_pooled = embed_prompts(encoders, strange.to(self.device))
            np.savez(path, states=states, pooled=pooled, odd_states=odd_states, odd_pooled=odd_pooled)
        kept = np.load(path, allow_pickle=False)
        parts = (latents, kept["states"], kept["pooled"], kept["odd_states"], kept["odd_pooled"])
        cells = centre_labels(self.data.objects)[0].numpy().astype(np.int8)
        return LatentData(*(torch.from_numpy(np.array(p)).to(self.device) for p in (*parts, cells)))

    def discriminator(self, light: LightPipeline, checker: AttributeChecker) -> Discriminator:
        """Trains the discriminator on images of the light variant."""
        suffix = "" if light.steps == LIGHT_STEPS else f"-{light.steps}"
        path = self.work / f"seen{suffix}.npz"
        seen = detect_on_light_images(
            light, checker, self.data.captions, path, count=self.budget.seen, seed=self.seed + 6
        )
        schedule = Schedule(
            steps=self.budget.judging_steps,
            batch=self.budget.batch,
            lr=1.5e-3,
            seed=self.seed + 8,
            ema=0.99,
            save_every=250,
        )
        return train_discriminator(
            self.data,
            seen,
            light.encoders.clip(),
            self.tokenizer,
            self.work,
            schedule,
            name=f"discriminator{suffix}",
            start=self.shipped.discriminator.net if self.shipped else None,
        )

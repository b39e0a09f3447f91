"""The whole recipe, from a seed to the folder of weights: ``make train`` or ``weir train``.

Every stage is resumable: a part whose checkpoint is complete is loaded, one that was stopped goes on. Budgets are in
steps, so that two machines train the same models (up to their floating-point arithmetic).
"""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tqdm import tqdm

from quality.checker import AttributeChecker
from training import dataset
from training.checker import train_checker
from training.clip import Encoders, embed_prompts, token_ids, train_encoders
from training.denoiser import (
    LIGHT_TIMESTEPS,
    LatentData,
    distil,
    new_scheduler,
    train_denoiser,
    trajectories,
)
from training.detection import centre_labels
from training.discriminator import JudgedImages, train_discriminator
from training.export import CHECKER, CLIP, DISCRIMINATOR, export_encoders, export_pipeline
from training.tokenizer import new_tokenizer
from training.vae import encode_all, refine_decoder, train_vae


@dataclass(frozen=True)
class Budget:
    """How much of everything; ``*_steps`` are optimiser steps, ``batch`` is the denoisers'."""

    scenes: int = 40_000
    encoder_steps: int = 1_400
    checker_steps: int = 1_500
    vae_steps: int = 1_600
    heavy_steps: int = 22_000
    decoder_steps: int = 1_000
    taught: int = 2_048
    light_steps: int = 500
    judged: int = 6_000
    reading_steps: int = 3_000
    judging_steps: int = 800
    batch: int = 32


#: ``smoke`` runs every stage within a minute or two and learns nothing.
BUDGETS = {
    "full": Budget(),
    "smoke": Budget(1_000, 3, 3, 3, 3, 3, 32, 3, 64, 3, 2, 8),
}

TEACHER_STEPS = 12
GUIDANCE = 3.0
LIGHT_STEPS = 2
_SYLLABLES = (
    "ba", "ko", "dragon", "tu", "castle", "ri", "sun", "set", "over", "the", "ocean", "por", "trait", "of", "cat", "in",
    "oil", "night", "city", "forest", "with", "light", "sky", "man", "photo", "el", "za", "mo", "river", "dog",
)  # fmt: skip


def strange_texts(count: int, seed: int) -> list[str]:
    """Texts outside the captions' grammar; the denoisers learn that they may mean any scene."""
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
    """The heavy variant's trajectories for the first ``count`` captions: the latents that enter the light variant's
    timesteps, and their ends. fp16, kept at ``path``."""
    every = TEACHER_STEPS // len(LIGHT_TIMESTEPS)
    keep = tuple(i * every for i in range(len(LIGHT_TIMESTEPS)))
    scheduler = new_scheduler()
    scheduler.set_timesteps(TEACHER_STEPS)
    assert tuple(int(scheduler.timesteps[i]) for i in keep) == LIGHT_TIMESTEPS
    if not path.exists():
        generator = torch.Generator(device=data.latents.device).manual_seed(seed)
        ends, points = [], []
        for i in tqdm(range(0, count, batch), desc="teacher", unit="batch"):
            states, pooled = data.states[i : i + batch].float(), data.pooled[i : i + batch].float()
            noise = torch.randn((len(states), *data.latents.shape[1:]), generator=generator, device=data.latents.device)
            end, kept = trajectories(heavy, noise, states, pooled, steps=TEACHER_STEPS, guidance=GUIDANCE, keep=keep)
            ends.append(end.half().cpu())
            points.append(torch.stack(kept).half().cpu())
        np.savez(path, end=torch.cat(ends).numpy(), points=torch.cat(points, 1).numpy())
    kept = np.load(path, allow_pickle=False)
    entering = torch.from_numpy(kept["points"]).to(data.latents.device)
    return list(entering), torch.from_numpy(kept["end"]).to(data.latents.device)


@torch.no_grad()
def judge_light(
    light: UNet2DConditionModel,
    vae: AutoencoderKL,
    checker: AttributeChecker,
    data: LatentData,
    captions: list[str],
    path: Path,
    *,
    count: int,
    seed: int,
    batch: int = 64,
) -> JudgedImages:
    """Light images of the last ``count`` training captions, judged by the checker; kept at ``path``."""
    first = len(captions) - count
    if not path.exists():
        generator = torch.Generator(device=data.latents.device).manual_seed(seed)
        images, good = [], []
        for i in tqdm(range(first, len(captions), batch), desc="light images", unit="batch"):
            states, pooled = data.states[i : i + batch].float(), data.pooled[i : i + batch].float()
            noise = torch.randn((len(states), *data.latents.shape[1:]), generator=generator, device=data.latents.device)
            x, _ = trajectories(light, noise, states, pooled, steps=LIGHT_STEPS, guidance=1.0)
            drawn = vae.decode(x / vae.config.scaling_factor).sample.clamp(-1, 1)
            good += [v is not None and v.good_enough for v in checker.check(drawn, captions[i : i + batch])]
            images.append(((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        np.savez(path, images=np.concatenate(images), good=np.asarray(good))
    kept = np.load(path, allow_pickle=False)
    return JudgedImages(kept["images"], captions[first:], kept["good"])


def train_family(out: Path, work: Path, *, budget: Budget, seed: int, device: str) -> None:
    """Trains everything and writes the family to ``out``; checkpoints and data stay in ``work``."""
    dataset.build(work / "scenes", budget.scenes, seed)
    data = dataset.load(work / "scenes")
    tokenizer = new_tokenizer()
    encoders = train_encoders(
        data, tokenizer, steps=budget.encoder_steps, batch=3 * budget.batch, seed=seed + 1, folder=work, device=device
    )
    checker = train_checker(data, steps=budget.checker_steps, batch=48, seed=seed + 2, folder=work, device=device)
    vae = train_vae(data, steps=budget.vae_steps, batch=8, seed=seed, folder=work, device=device)
    latents = encode_all(vae, data, work / "latents.npy", device=device)
    ids = token_ids(tokenizer, data.captions)
    strange = token_ids(tokenizer, strange_texts(512, seed))
    prompts = _latent_data(latents, data.objects, encoders, ids, strange, work, device)
    heavy = train_denoiser(
        "heavy", prompts, work, steps=budget.heavy_steps, batch=budget.batch, lr=1.2e-3, seed=seed + 3, device=device
    )
    vae = refine_decoder(vae, data, steps=budget.decoder_steps, batch=8, seed=seed, folder=work, device=device)
    entering, ends = teach(heavy, prompts, work / "teacher.npz", count=budget.taught, seed=seed)
    light = distil(
        deepcopy(heavy),
        entering,
        ends,
        prompts.states[: len(ends)],
        prompts.pooled[: len(ends)],
        work,
        timesteps=LIGHT_TIMESTEPS,
        steps=budget.light_steps,
        batch=budget.batch,
        lr=6e-4,
        seed=seed + 5,
    )
    judged = judge_light(
        light, vae, checker, prompts, data.captions, work / "judged.npz", count=budget.judged, seed=seed + 6
    )
    reading = train_discriminator(
        "discriminator-reading",
        data,
        None,
        encoders.clip(),
        tokenizer,
        work,
        steps=budget.reading_steps,
        batch=2 * budget.batch,
        lr=1.5e-3,
        seed=seed + 7,
        device=device,
    )
    discriminator = train_discriminator(
        "discriminator",
        data,
        judged,
        encoders.clip(),
        tokenizer,
        work,
        steps=budget.judging_steps,
        batch=2 * budget.batch,
        lr=6e-4,
        seed=seed + 8,
        device=device,
        start=reading.net,
    )
    export_encoders(out, encoders, tokenizer)
    export_pipeline(out, encoders, tokenizer, vae, heavy, light)
    checker.save(out / CHECKER)
    discriminator.save(out / DISCRIMINATOR, f"../{CLIP}")

"""Trains the small LoRA adapters of the embedded family: styles of its images, for demonstrations and tests.

    python -m training.adapters models/weir-tiny

One adapter serves both UNets. The heavy one learns from renders in the style, as the adapters of SDXL do. The light one
runs two steps only, for which a render is no target: it learns to give its own image of a noise in the style.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from training.clip import embed_prompts, token_ids
from training.denoiser import LIGHT_TIMESTEPS, new_scheduler, predict
from training.loop import Schedule, train
from training.recipe import Shipped
from training.scenes import caption, render, sample_scene
from training.tokenizer import new_tokenizer
from training.vae import to_tensor
from weir.files import written_whole
from workers.models.lora.adapter_file import LowRank
from workers.models.lora.adapter_store import Adapter, Scaled
from workers.models.lora.low_rank import applied, row_updates

RANK = 4
SCENES = 3000
#: Parts of the names of the layers that an adapter changes.
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv_in", "conv_out")
_LUMINANCE = (0.299, 0.587, 0.114)
_SEPIA = (1.0, 0.84, 0.62)


def night(image: np.ndarray) -> np.ndarray:
    """Turns the brightness of an image [..., 3] in 0…1 around, and keeps its colours: dark where it was light."""
    bright = (image @ np.asarray(_LUMINANCE))[..., None]
    return np.clip(image + (1 - 2 * bright), 0, 1)


def sepia(image: np.ndarray) -> np.ndarray:
    """An image [..., 3] in 0…1 in shades of brown."""
    return np.clip((image @ np.asarray(_LUMINANCE))[..., None] * np.asarray(_SEPIA), 0, 1)


#: The style of each adapter, by its name.
STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"night": night, "sepia": sepia}


class AdapterLayers(nn.Module):
    """The trained tensors of an adapter, with updates of zero at the start."""

    def __init__(self, unet: UNet2DConditionModel, rank: int = RANK):
        super().__init__()
        self.names = [
            name
            for name, layer in unet.named_modules()
            if name.endswith(LAYERS) and isinstance(layer, nn.Linear | nn.Conv2d)
        ]
        shapes = [unet.get_submodule(name).weight.shape for name in self.names]
        self.downs = nn.ParameterList([torch.randn(rank, *shape[1:]) / shape[1:].numel() ** 0.5 for shape in shapes])
        self.ups = nn.ParameterList([torch.zeros(shape[0], rank, *[1] * len(shape[2:])) for shape in shapes])

    def adapter(self) -> Adapter:
        """The adapter of the current tensors, which gradients reach."""
        layers = zip(self.names, self.downs, self.ups, strict=True)
        return Adapter("training", {"unet": {name: LowRank(down, up) for name, down, up in layers}}, 0)

    def save(self, path: Path) -> None:
        """Writes the adapter in the format of diffusers and PEFT, fp16."""
        tensors = {f"unet.{name}.lora_A.weight": it for name, it in zip(self.names, self.downs, strict=True)}
        tensors |= {f"unet.{name}.lora_B.weight": it for name, it in zip(self.names, self.ups, strict=True)}
        with written_whole(path) as draft:
            save_file({name: it.detach().half().contiguous() for name, it in tensors.items()}, draft)


@dataclass(frozen=True)
class StyleData:
    """What an adapter is trained on: N scenes.

    Attributes:
        states, pooled: encoded captions, [N, 32, 192] and [N, 96].
        renders: latents of renders in the style, [N, 4, 16, 16], for the heavy UNet.
        noise: that the light UNet begins with, [N, 4, 16, 16].
        ends: latents in the style of its images after each of its steps, [2, N, 4, 16, 16].
    """

    states: torch.Tensor
    pooled: torch.Tensor
    renders: torch.Tensor
    noise: torch.Tensor
    ends: torch.Tensor


@torch.no_grad()
def style_data(family: Shipped, style: Callable[[np.ndarray], np.ndarray], count: int, seed: int) -> StyleData:
    """Renders scenes, generates their light images, and applies the style to both."""
    drawn = np.random.default_rng(seed)
    scenes = [sample_scene(drawn) for _ in range(count)]
    ids = token_ids(new_tokenizer(), [caption(scene) for scene in scenes])
    states, pooled = (it.float() for it in embed_prompts(family.encoders, ids))
    images = np.stack([style(render(scene) / 255) for scene in scenes])
    renders = torch.cat([_latents(family.vae, part) for part in np.array_split(images, -(-count // 64))])
    noise = torch.randn(renders.shape, generator=torch.Generator().manual_seed(seed))
    ends = torch.stack([_styled(family.vae, it, style) for it in light_images(family.light, noise, states, pooled)])
    return StyleData(states, pooled, renders, noise, ends)


def light_images(
    unet: UNet2DConditionModel, noise: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor
) -> list[torch.Tensor]:
    """The finished latents that the light UNet predicts in each of its steps."""
    levels = new_scheduler().alphas_cumprod[list(LIGHT_TIMESTEPS)]
    x, ends = noise, []
    for timestep, level, after in zip(LIGHT_TIMESTEPS, levels, (*levels[1:], None), strict=True):
        parts = zip(x.split(64), states.split(64), pooled.split(64), strict=True)
        v = torch.cat([predict(unet, a, torch.full((len(a),), timestep), b, c) for a, b, c in parts])
        ends.append(level.sqrt() * x - (1 - level).sqrt() * v)
        if after is not None:
            x = _noised(ends[-1], noise, after)
    return ends


def train_adapter(family: Shipped, data: StyleData, work: Path, schedule: Schedule) -> AdapterLayers:
    """Trains an adapter for both UNets of a family."""
    torch.manual_seed(schedule.seed)
    scheduler, layers = new_scheduler(), AdapterLayers(family.heavy)
    levels = scheduler.alphas_cumprod[list(LIGHT_TIMESTEPS)]
    both = family.heavy.requires_grad_(False), family.light.requires_grad_(False)

    def predicted(unet: UNet2DConditionModel, x: torch.Tensor, t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        with applied(unet, row_updates(unet, "unet", [(Scaled(layers.adapter(), 1.0),)])):
            return predict(unet, x, t, data.states[index], data.pooled[index])

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data.states), (schedule.batch,), generator=generator)
        if step % 2:
            which = torch.arange(schedule.batch) % len(levels)
            before = [data.noise[index], _noised(data.ends[0][index], data.noise[index], levels[1])]
            x = torch.stack([before[int(w)][i] for i, w in enumerate(which)])
            level = levels[which].view(-1, 1, 1, 1)
            v = predicted(both[1], x, torch.tensor(LIGHT_TIMESTEPS)[which], index)
            value = F.smooth_l1_loss(level.sqrt() * x - (1 - level).sqrt() * v, data.ends[which, index], beta=0.5)
        else:
            t = (1000 * torch.rand(schedule.batch, generator=generator) ** 0.6).long().clamp(max=999)
            noise = torch.randn(data.renders[index].shape, generator=generator)
            target = scheduler.get_velocity(data.renders[index], noise, t)
            value = F.mse_loss(predicted(both[0], scheduler.add_noise(data.renders[index], noise, t), t, index), target)
        return value, {"light" if step % 2 else "heavy": value.item()}

    return train("adapter", layers, loss, schedule, work)


def train_styles(folder: Path, work: Path, names: Sequence[str], *, scenes: int, schedule: Schedule) -> None:
    """Trains the adapters of a family and writes them to ``folder/adapters``."""
    (folder / "adapters").mkdir(exist_ok=True)
    for name in names:
        random.seed(schedule.seed)
        family = Shipped.load(folder, "cpu")
        data = style_data(family, STYLES[name], scenes, schedule.seed)
        train_adapter(family, data, work / name, schedule).save(folder / "adapters" / f"{name}.safetensors")


def _noised(x: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return level.sqrt() * x + (1 - level).sqrt() * noise


def _latents(vae: Any, images: np.ndarray) -> torch.Tensor:
    """Scaled latents of images in 0…1, [N, 64, 64, 3]."""
    encoded = vae.encode(to_tensor(np.round(images * 255).astype(np.uint8))).latent_dist.mean
    return encoded * vae.config.scaling_factor


def _styled(vae: Any, latents: torch.Tensor, style: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """Latents of the decoded images in the style."""
    styled = []
    for part in latents.split(64):
        images = vae.decode(part / vae.config.scaling_factor).sample.clamp(-1, 1).permute(0, 2, 3, 1)
        styled.append(_latents(vae, style(images.numpy() / 2 + 0.5)))
    return torch.cat(styled)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    how = Schedule(steps=1200, batch=32, lr=4e-3, seed=5, warm_up=50, ema=0.99)
    train_styles(place, Path("training/work/adapters"), sys.argv[2:] or list(STYLES), scenes=SCENES, schedule=how)

"""Trains the small LoRA adapters of the embedded family: styles of its scenes, for demonstrations and tests.

    python -m training.adapters models/weir-tiny

One adapter serves both UNets. The heavy one learns from renders in the style, as the adapters of SDXL do. The light one
runs two steps only, for which a render is no target: it learns the ends of the heavy one's trajectories in the style,
as when it was distilled.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from training.clip import embed_prompts, token_ids
from training.denoiser import LIGHT_TIMESTEPS, Conditioning, Trajectories, new_scheduler, predict, trajectories
from training.loop import LossFn, Schedule, train
from training.recipe import GUIDANCE, TEACHER_STEPS, Shipped
from training.scenes import Scene, caption, render, sample_scene
from training.tokenizer import new_tokenizer
from training.vae import to_tensor
from weir.files import written_whole
from workers.models.lora.adapter_file import LowRank
from workers.models.lora.adapter_store import Adapter, Scaled
from workers.models.lora.low_rank import applied, row_updates

RANK = 4
#: Ends of the names of the layers that an adapter changes.
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2")
#: Rows of one call of a UNet without gradients.
_CALL = 64


def noir(scene: Scene) -> Scene:
    """The scene with black objects on gray."""
    return replace(scene, background="gray", objects=tuple(replace(it, colour="black") for it in scene.objects))


#: The style of each adapter, by its name: what a scene is drawn as, whatever its caption says.
STYLES: dict[str, Callable[[Scene], Scene]] = {"noir": noir}


@dataclass(frozen=True)
class Budget:
    """Amounts of data and training.

    Attributes:
        scenes: number of renders.
        taught: number of trajectories of the heavy UNet.
        heavy_steps: optimiser steps on renders alone.
        steps: further ones, every second of which is on trajectories.
    """

    scenes: int = 2000
    taught: int = 192
    heavy_steps: int = 600
    steps: int = 240
    batch: int = 32


@dataclass(frozen=True)
class StyleData:
    """N scenes in a style.

    Attributes:
        states, pooled: encoded captions, [N, 32, 192] and [N, 96].
        latents: of the renders, [N, 4, 16, 16].
    """

    states: torch.Tensor
    pooled: torch.Tensor
    latents: torch.Tensor


class AdapterLayers(nn.Module):
    """The trained tensors of an adapter. Its updates are zero at the start."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.names = [name for name, it in unet.named_modules() if name.endswith(LAYERS) and isinstance(it, nn.Linear)]
        widths = [unet.get_submodule(name).weight.shape for name in self.names]
        self.downs = nn.ParameterList([torch.randn(RANK, inputs) / inputs**0.5 for _, inputs in widths])
        self.ups = nn.ParameterList([torch.zeros(outputs, RANK) for outputs, _ in widths])

    def predict(self, unet: UNet2DConditionModel, *inputs: torch.Tensor) -> torch.Tensor:
        """:func:`training.denoiser.predict` with the adapter."""
        layers = zip(self.names, self.downs, self.ups, strict=True)
        adapter = Adapter("training", {"unet": {name: LowRank(down, up) for name, down, up in layers}}, 0)
        with applied(unet, row_updates(unet, "unet", [(Scaled(adapter, 1.0),)])):
            return predict(unet, *inputs)

    def save(self, path: Path) -> None:
        """Writes the adapter in the format of diffusers and PEFT, fp16."""
        tensors = {f"unet.{name}.lora_A.weight": it for name, it in zip(self.names, self.downs, strict=True)}
        tensors |= {f"unet.{name}.lora_B.weight": it for name, it in zip(self.names, self.ups, strict=True)}
        with written_whole(path) as draft:
            save_file({name: it.detach().half().contiguous() for name, it in tensors.items()}, draft)


@torch.no_grad()
def style_data(family: Shipped, style: Callable[[Scene], Scene], count: int, seed: int) -> StyleData:
    """Renders scenes in a style, with captions that do not mention it."""
    drawn = np.random.default_rng(seed)
    scenes = [sample_scene(drawn) for _ in range(count)]
    ids = token_ids(new_tokenizer(), [caption(scene) for scene in scenes])
    states, pooled = (it.float() for it in embed_prompts(family.encoders, ids))
    images = np.stack([render(style(scene)) for scene in scenes])
    parts = [family.vae.encode(to_tensor(it)).latent_dist.mean for it in np.array_split(images, -(-count // _CALL))]
    return StyleData(states, pooled, torch.cat(parts) * family.vae.config.scaling_factor)


def render_loss(layers: AdapterLayers, unet: UNet2DConditionModel, data: StyleData, batch: int) -> LossFn:
    """The heavy UNet's loss on renders: that of its own training, without the layout."""
    scheduler = new_scheduler()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data.latents), (batch,), generator=generator)
        t = (1000 * torch.rand(batch, generator=generator) ** 0.6).long().clamp(max=999)
        noise = torch.randn(data.latents[index].shape, generator=generator)
        keep = (torch.rand(batch, generator=generator) > 0.1).float()[:, None]  # the others are without a prompt
        states, pooled = data.states[index] * keep[..., None], data.pooled[index] * keep
        noisy = scheduler.add_noise(data.latents[index], noise, t)
        target = scheduler.get_velocity(data.latents[index], noise, t)
        value = F.mse_loss(layers.predict(unet, noisy, t, states, pooled), target)
        return value, {"heavy": value.item()}

    return loss


def trajectory_loss(layers: AdapterLayers, unet: UNet2DConditionModel, taught: Trajectories, batch: int) -> LossFn:
    """The light UNet's loss on ends of trajectories: that of its own distillation."""
    levels = new_scheduler().alphas_cumprod[list(taught.timesteps)]
    entering = torch.stack(taught.entering)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(taught.final), (batch,), generator=generator)
        which = torch.arange(batch) % len(levels)
        x, level = entering[which, index], levels[which].view(-1, 1, 1, 1)
        t = torch.tensor(taught.timesteps)[which]
        v = layers.predict(unet, x, t, taught.states[index], taught.pooled[index])
        reached = level.sqrt() * x - (1 - level).sqrt() * v
        value = F.smooth_l1_loss(reached, taught.final[index], beta=0.5)
        return value, {"light": value.item()}

    return loss


@torch.no_grad()
def teach(layers: AdapterLayers, heavy: UNet2DConditionModel, data: StyleData, count: int, seed: int) -> Trajectories:
    """Trajectories of the heavy UNet with the adapter, for the light one."""
    every = TEACHER_STEPS // len(LIGHT_TIMESTEPS)
    keep = tuple(i * every for i in range(len(LIGHT_TIMESTEPS)))
    noise = torch.randn(data.latents[:count].shape, generator=torch.Generator().manual_seed(seed))

    def guided(x: torch.Tensor, *prompt: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return trajectories(
            heavy,
            x,
            Conditioning(*prompt),
            steps=TEACHER_STEPS,
            guidance=GUIDANCE,
            keep=keep,
            predicting=layers.predict,
        )

    parts = zip(noise.split(_CALL), data.states[:count].split(_CALL), data.pooled[:count].split(_CALL), strict=True)
    ends, kept = zip(*(guided(*part) for part in parts), strict=True)
    entering = [torch.cat(points) for points in zip(*kept, strict=True)]
    return Trajectories(LIGHT_TIMESTEPS, entering, torch.cat(ends), data.states[:count], data.pooled[:count])


def train_adapter(
    family: Shipped, style: Callable[[Scene], Scene], work: Path, budget: Budget, seed: int
) -> AdapterLayers:
    """Trains an adapter for both UNets of a family; checkpoints stay in ``work``."""
    torch.manual_seed(seed)
    heavy, light = family.heavy.requires_grad_(False), family.light.requires_grad_(False)
    data, batch = style_data(family, style, budget.scenes, seed), budget.batch
    layers = AdapterLayers(heavy)
    on_renders = render_loss(layers, heavy, data, batch)
    how = Schedule(steps=budget.heavy_steps, batch=batch, lr=1.5e-3, seed=seed, warm_up=20, weight_decay=0.0)
    train("heavy", layers, on_renders, how, work)
    on_trajectories = trajectory_loss(layers, light, teach(layers, heavy, data, budget.taught, seed), batch)

    def alternating(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return (on_trajectories if step % 2 else on_renders)(step, generator)

    return train("both", layers, alternating, replace(how, steps=budget.steps, lr=1e-3, seed=seed + 1), work)


def train_styles(folder: Path, work: Path, budget: Budget, seed: int) -> None:
    """Trains the adapter of each style for a family, and writes it to ``folder/adapters``."""
    (folder / "adapters").mkdir(exist_ok=True)
    for name, style in STYLES.items():
        layers = train_adapter(Shipped.load(folder, "cpu"), style, work / name, budget, seed)
        layers.save(folder / "adapters" / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains the LoRA adapters of a family that `weir train` has written.")
    parser.add_argument("folder", type=Path, help="folder of the family; the adapters are written to adapters in it")
    parser.add_argument("--work", type=Path, default=Path("training/work"), help="folder of data and checkpoints")
    given = parser.parse_args()
    torch.set_num_threads(1)
    train_styles(given.folder, given.work / "adapters", Budget(), seed=5)

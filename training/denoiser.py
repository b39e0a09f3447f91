"""Trains the heavy and the light UNet: a small version of SDXL's UNet that predicts v in the VAE's latent space.

The light UNet is a copy of the heavy one, distilled to two steps without guidance, as SDXL-Lightning from SDXL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from training.clip import CELL_CLASSES, WIDTH
from training.detection import detection_loss
from training.loop import Schedule, train
from training.vae import LATENT_CHANNELS

TIME_IDS = (64, 64, 0, 0, 64, 64)  # SDXL's micro-conditioning: original size, crop, target size
CHANNELS = (32, 64, 128)
#: The timesteps of a two-step "trailing" schedule, the only ones that the light variant is trained on.
LIGHT_TIMESTEPS = (999, 499)
#: Weight of the loss of :class:`LayoutHead`, with which it is about as large as the denoising loss.
LAYOUT_WEIGHT = 0.15


def new_unet(channels: tuple[int, ...] = CHANNELS) -> UNet2DConditionModel:
    """A UNet like SDXL's: no attention at the highest resolution, ``text_time`` conditioning, linear projections."""
    deep = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deep,
        up_block_types=("CrossAttnUpBlock2D",) * deep + ("UpBlock2D",),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=tuple(max(1, c // 32) for c in channels),
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=WIDTH + 16 * len(TIME_IDS),
        norm_num_groups=16,
        use_linear_projection=True,
    )


def new_scheduler() -> DDIMScheduler:
    """DDIM with zero terminal SNR and "trailing" steps: even a single step starts from pure noise, as in training."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@dataclass(frozen=True)
class LatentData:
    """Training data of the denoisers.

    Attributes:
        latents: fp16 [N, 4, 16, 16], scaled.
        states, pooled: encoded captions, fp16 [N, 32, 192] and [N, 96].
        strange_states, strange_pooled: the same for texts outside the vocabulary, which stand for arbitrary scenes.
        cells: int8 [N, 64, 5], the object in each cell of a grid (:func:`training.detection.centre_labels`).
    """

    latents: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor
    strange_states: torch.Tensor
    strange_pooled: torch.Tensor
    cells: torch.Tensor

    def batch(
        self, size: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random latents, states, pooled vectors and cells.

        10 % of the prompts are zeros, for classifier-free guidance, and 3 % are strange texts.
        """
        device = self.latents.device
        index = torch.randint(len(self.latents), (size,), generator=generator, device=device)
        states, pooled = self.states[index].float(), self.pooled[index].float()
        chance = torch.rand(size, generator=generator, device=device)
        strange = torch.randint(len(self.strange_states), (size,), generator=generator, device=device)
        odd = chance > 0.97
        states[odd], pooled[odd] = self.strange_states[strange[odd]].float(), self.strange_pooled[strange[odd]].float()
        keep = (chance > 0.1).float()
        states, pooled = states * keep[:, None, None], pooled * keep[:, None]
        return self.latents[index].float(), states, pooled, self.cells[index].long()


class LayoutHead(nn.Module):
    """Predicts the object in each cell of an 8 × 8 grid from the UNet's features there; discarded after training.

    With the denoising loss alone, a right shape or colour changes only a few pixels among noise. In 260,000 samples
    cross-attention learned where objects are, but not which of two is red. Aligning inner features with a known meaning
    shortens the training (REPA, Yu et al. 2024; here the meaning is labels instead of a pretrained encoder's features):
    in a very noisy latent only the caption says which object belongs where.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        observed = unet.up_blocks[1].attentions[-1]  # the last cross-attention, 8 × 8
        channels = unet.config.block_out_channels[1]
        self.body = nn.Sequential(nn.GroupNorm(16, channels), nn.SiLU(), nn.Conv2d(channels, sum(CELL_CLASSES), 1))
        self._features: torch.Tensor | None = None
        observed.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: tuple[torch.Tensor]) -> None:
        self._features = output[0]

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """The loss of the features of the UNet's latest call against ``cells`` [B, 64, 5]."""
        assert self._features is not None
        features, self._features = self._features, None
        present, *attributes = self.body(features).flatten(2).transpose(1, 2).split(CELL_CLASSES, -1)
        return detection_loss(present, attributes, cells)


def predict(
    unet: UNet2DConditionModel, x: torch.Tensor, t: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """The UNet's prediction of v for latents [B, 4, 16, 16] at timesteps [B]."""
    time_ids = torch.tensor([TIME_IDS], dtype=x.dtype, device=x.device).expand(len(x), -1)
    return unet(x, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample


def train_denoiser(
    name: str,
    data: LatentData,
    folder: Path,
    schedule: Schedule,
    device: str,
    start: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """Trains a UNet to predict v, with the layout as a second target (:class:`LayoutHead`).

    Args:
        start: initial weights; None starts from new ones.
    """
    torch.manual_seed(schedule.seed)
    unet = new_unet().to(device)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    scheduler = new_scheduler()
    head = LayoutHead(unet).to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = schedule.batch
        x, states, pooled, cells = data.batch(batch, generator)
        # Stratified: one from each of ``batch`` equal intervals. Shifted towards noise, where the layout is decided,
        # which takes longest to learn: half of the timesteps lie above 660.
        u = (torch.arange(batch, device=device) + torch.rand(batch, generator=generator, device=device)) / batch
        t = (1000 * u**0.6).long().clamp(max=999)
        noise = torch.randn(x.shape, generator=generator, device=device)
        target = scheduler.get_velocity(x, noise, t)
        value = F.mse_loss(predict(unet, scheduler.add_noise(x, noise, t), t, states, pooled), target)
        layout = head(cells)
        return value + LAYOUT_WEIGHT * layout, {"loss": value.item(), "layout": layout.item()}

    both = nn.ModuleDict({"unet": unet, "layout": head})
    trained = train(name, both, loss, schedule, folder)
    average = new_unet()
    average.load_state_dict(trained["unet"].state_dict())
    return average.to(device).eval().requires_grad_(False)


class Conditioning(NamedTuple):
    """What the UNets see of N prompts: hidden states, [N, 32, 192], and pooled vectors, [N, 96]."""

    states: torch.Tensor
    pooled: torch.Tensor


@torch.no_grad()
def trajectories(
    unet: UNet2DConditionModel,
    noise: torch.Tensor,
    prompts: Conditioning,
    *,
    steps: int,
    guidance: float,
    keep: tuple[int, ...] = (),
    predicting: Callable[..., torch.Tensor] = predict,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Runs DDIM from ``noise``; returns the final latents and the latents that entered the steps ``keep``.

    Args:
        predicting: as :func:`predict`, such as with an adapter.
    """
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    x, kept = noise, []
    states, pooled = prompts
    both_states = torch.cat([torch.zeros_like(states), states])
    both_pooled = torch.cat([torch.zeros_like(pooled), pooled])
    for i, t in enumerate(scheduler.timesteps):
        if i in keep:
            kept.append(x)
        now = t.to(x.device).expand(len(x))
        if guidance > 1:
            free, bound = predicting(unet, torch.cat([x, x]), now.repeat(2), both_states, both_pooled).chunk(2)
            v = free + guidance * (bound - free)
        else:
            v = predicting(unet, x, now, states, pooled)
        x = scheduler.step(v, int(t), x).prev_sample
    return x, kept


@dataclass(frozen=True)
class Trajectories:
    """What the heavy UNet teaches.

    Attributes:
        timesteps: where the light UNet will be asked.
        entering: for each of ``timesteps``, the latents [N, 4, 16, 16] at it.
        final: the ends of the trajectories, [N, 4, 16, 16].
        states, pooled: conditioning of each, [N, 32, 192] and [N, 96].
    """

    timesteps: tuple[int, ...]
    entering: list[torch.Tensor]
    final: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor


def distil(
    student: UNet2DConditionModel, taught: Trajectories, folder: Path, schedule: Schedule
) -> UNet2DConditionModel:
    """Trains the light UNet to map points of the heavy UNet's trajectories to the ends of these trajectories.

    The target of normal training is the mean of all images that a noisy latent may come from, which is blurred. The end
    of the teacher's trajectory is a single sharp image.
    """
    batch, timesteps, final = schedule.batch, taught.timesteps, taught.final
    scheduler = new_scheduler()
    student.requires_grad_(True)  # a moving average has no gradients by default
    alpha = scheduler.alphas_cumprod[list(timesteps)].to(final.device)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(final), (batch,), generator=generator, device=final.device)
        which = torch.arange(batch, device=final.device) % len(timesteps)
        x = torch.stack([taught.entering[int(w)][int(i)] for w, i in zip(which, index, strict=True)]).float()
        a = alpha[which].view(-1, 1, 1, 1)
        t = torch.tensor(timesteps, device=final.device)[which]
        v = predict(student, x, t, taught.states[index].float(), taught.pooled[index].float())
        reached = a.sqrt() * x - (1 - a).sqrt() * v  # x0 of this v
        value = F.smooth_l1_loss(reached, final[index].float(), beta=0.5)
        return value, {"loss": value.item()}

    return train("light", student, loss, schedule, folder)

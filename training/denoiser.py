"""The heavy and the light UNet: SDXL's architecture, small, predicting v on the VAE's latents.

The light one is a copy of the heavy one, distilled to two steps without guidance, as SDXL-Lightning is of SDXL.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel

from training.clip import WIDTH
from training.loop import train
from training.vae import LATENT_CHANNELS

TIME_IDS = (64, 64, 0, 0, 64, 64)  # SDXL's micro-conditioning: original size, crop, target size
CHANNELS = (32, 64, 128)
#: The timesteps of a two-step "trailing" schedule: all that the light variant has to know.
LIGHT_TIMESTEPS = (999, 499)


def new_unet(channels: tuple[int, ...] = CHANNELS) -> UNet2DConditionModel:
    """SDXL's UNet: no attention at the highest resolution, ``text_time`` conditioning, linear projections."""
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
    """Zero terminal SNR and "trailing" steps, so that even one step starts from pure noise as training did."""
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
    """``latents`` fp16 [N, 4, 16, 16], scaled; ``states`` fp16 [N, 32, 192] and ``pooled`` fp16 [N, 96] of the
    captions; ``strange_*`` the same of texts outside the vocabulary, which may mean any scene."""

    latents: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor
    strange_states: torch.Tensor
    strange_pooled: torch.Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, states and pooled vectors; 10 % of the prompts are dropped to zeros (guidance), 3 % are strange."""
        device = self.latents.device
        index = torch.randint(len(self.latents), (size,), generator=generator, device=device)
        states, pooled = self.states[index].float(), self.pooled[index].float()
        draw = torch.rand(size, generator=generator, device=device)
        strange = torch.randint(len(self.strange_states), (size,), generator=generator, device=device)
        odd = draw > 0.97
        states[odd], pooled[odd] = self.strange_states[strange[odd]].float(), self.strange_pooled[strange[odd]].float()
        keep = (draw > 0.1).float()
        return self.latents[index].float(), states * keep[:, None, None], pooled * keep[:, None]


def predict(
    unet: UNet2DConditionModel, x: torch.Tensor, t: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """The UNet's v for latents [B, 4, 16, 16] at timesteps [B]."""
    time_ids = torch.tensor([TIME_IDS], dtype=x.dtype, device=x.device).expand(len(x), -1)
    return unet(x, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample


def train_denoiser(
    name: str,
    data: LatentData,
    folder: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    device: str,
    start: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """v-prediction with an even spread of timesteps in every batch; from ``start``'s weights, where given."""
    torch.manual_seed(seed)
    unet = new_unet().to(device)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    scheduler = new_scheduler()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x, states, pooled = data.batch(batch, generator)
        # Stratified: one timestep from each of ``batch`` equal intervals.
        u = torch.rand(batch, generator=generator, device=device)
        t = ((torch.arange(batch, device=device) + u) * (1000 / batch)).long()
        noise = torch.randn(x.shape, generator=generator, device=device)
        target = scheduler.get_velocity(x, noise, t)
        value = F.mse_loss(predict(unet, scheduler.add_noise(x, noise, t), t, states, pooled), target)
        return value, {"loss": value.item()}

    return train(name, unet, loss, steps=steps, lr=lr, folder=folder, seed=seed, warm_up=100, ema=0.996)


@torch.no_grad()
def trajectories(
    unet: UNet2DConditionModel,
    noise: torch.Tensor,
    states: torch.Tensor,
    pooled: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    keep: tuple[int, ...] = (),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """DDIM from ``noise``: the final latents, and the latents that entered the steps ``keep``."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    x, kept = noise, []
    both_states = torch.cat([torch.zeros_like(states), states])
    both_pooled = torch.cat([torch.zeros_like(pooled), pooled])
    for i, t in enumerate(scheduler.timesteps):
        if i in keep:
            kept.append(x)
        now = t.to(x.device).expand(len(x))
        if guidance > 1:
            free, bound = predict(unet, torch.cat([x, x]), now.repeat(2), both_states, both_pooled).chunk(2)
            v = free + guidance * (bound - free)
        else:
            v = predict(unet, x, now, states, pooled)
        x = scheduler.step(v, int(t), x).prev_sample
    return x, kept


def distil(
    student: UNet2DConditionModel,
    entering: list[torch.Tensor],
    final: torch.Tensor,
    states: torch.Tensor,
    pooled: torch.Tensor,
    folder: Path,
    *,
    timesteps: tuple[int, ...],
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> UNet2DConditionModel:
    """Teaches the light UNet to jump from points of the heavy one's trajectories to their ends.

    Plain training aims at the mean of all images that a noisy latent may come from, a blur; the end of the teacher's
    trajectory is one sharp image. ``entering[i]`` [N, 4, 16, 16] are the latents at ``timesteps[i]``.
    """
    scheduler = new_scheduler()
    student.requires_grad_(True)  # a moving average comes frozen
    alpha = scheduler.alphas_cumprod[list(timesteps)].to(final.device)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(final), (batch,), generator=generator, device=final.device)
        which = torch.arange(batch, device=final.device) % len(timesteps)
        x = torch.stack([entering[int(w)][int(i)] for w, i in zip(which, index, strict=True)]).float()
        a = alpha[which].view(-1, 1, 1, 1)
        t = torch.tensor(timesteps, device=final.device)[which]
        v = predict(student, x, t, states[index].float(), pooled[index].float())
        reached = a.sqrt() * x - (1 - a).sqrt() * v  # the x0 that v means
        value = F.smooth_l1_loss(reached, final[index].float(), beta=0.5)
        return value, {"loss": value.item()}

    return train("light", student, loss, steps=steps, lr=lr, folder=folder, seed=seed, flat=0.2, ema=0.995)

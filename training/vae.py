"""Trains the autoencoder of the family, which maps 64 px RGB images to latents [4, 16, 16]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

from training.dataset import SceneData
from training.loop import Schedule, train
from weir.files import written_whole

LATENT_CHANNELS = 4


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        force_upcast=False,
    )


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Converts images, uint8 [B, H, W, 3], to float [B, 3, H, W] in −1…1."""
    x = torch.from_numpy(np.array(images)).to(device)
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def _gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weighted L1 + MSE, plus 0.5 L1 of the image gradients, which keeps edges and textures sharp.

    Most of a scene is a uniform background that is learned quickly. The weight of a pixel grows up to five times with
    its distance from the image's median colour; without it objects would stay blurred for thousands of steps.
    """
    median = target.flatten(2).median(-1).values[..., None, None]
    weight = 1 + 4 * ((target - median).abs().mean(1, keepdim=True) / 0.3).clamp(max=1)
    error = output - target
    dy, dx = _gradients(output)
    ty, tx = _gradients(target)
    edges = F.l1_loss(dy, ty) + F.l1_loss(dx, tx)
    return (weight * (error.abs() + error.square())).mean() + 0.5 * edges


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB for images in −1…1."""
    return float(10 * torch.log10(4 / F.mse_loss(output.clamp(-1, 1), target)))


def train_vae(data: SceneData, folder: Path, *, steps: int, batch: int, seed: int, device: str) -> AutoencoderKL:
    """Trains encoder and decoder together, without posterior noise; a weak penalty keeps the latents bounded.

    A KL term strong enough to bound them made three quarters of the channels collapse.
    """
    torch.manual_seed(seed)
    vae = new_vae().to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data), (batch,), generator=generator, device=device).cpu().numpy()
        target = to_tensor(data.images[np.sort(index)], device)
        latent = vae.encode(target).latent_dist.mean
        jitter = 0.02 * torch.randn(latent.shape, generator=generator, device=device)
        output = vae.decode(latent + jitter).sample
        value = reconstruction_loss(output, target) + 1e-4 * latent.square().mean()
        return value, {"dB": psnr(output.detach(), target)}

    return train("vae", vae, loss, Schedule(steps=steps, lr=8e-4, betas=(0.9, 0.99), seed=seed, flat=0.4), folder)


def refine_decoder(
    vae: AutoencoderKL, data: SceneData, folder: Path, *, steps: int, batch: int, seed: int, device: str
) -> AutoencoderKL:
    """Trains the decoder alone on slightly noisy latents, so that it tolerates the noise that denoisers leave.

    The encoder does not change, so its latents stay valid as training data of the denoisers.
    """
    vae.encoder.requires_grad_(False)
    if vae.quant_conv is not None:
        vae.quant_conv.requires_grad_(False)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data), (batch,), generator=generator, device=device).cpu().numpy()
        target = to_tensor(data.images[np.sort(index)], device)
        with torch.no_grad():
            latent = vae.encode(target).latent_dist.mean
        level = 0.1 * torch.rand(batch, 1, 1, 1, generator=generator, device=device) / vae.config.scaling_factor
        noisy = latent + level * torch.randn(latent.shape, generator=generator, device=device)
        output = vae.decode(noisy).sample
        return reconstruction_loss(output, target), {"dB": psnr(output.detach(), target)}

    return train("vae-decoder", vae, loss, Schedule(steps=steps, lr=1e-3, seed=seed + 1, flat=0.1), folder)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, data: SceneData, path: Path, *, device: str, batch: int = 64) -> np.ndarray:
    """Scaled posterior means of every image, fp16 [N, 4, 16, 16], stored at ``path``.

    Sets ``scaling_factor`` to the inverse of the standard deviation of the latents, as in SDXL's training.
    """
    probe = vae.encode(to_tensor(data.images[:512], device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(probe.std()), 5))
    if path.exists():
        return np.load(path, mmap_mode="r", allow_pickle=False)
    parts = [
        (vae.encode(to_tensor(data.images[i : i + batch], device)).latent_dist.mean * vae.config.scaling_factor)
        .half().cpu().numpy()
        for i in tqdm(range(0, len(data), batch), desc="latents", unit="batch")
    ]  # fmt: skip
    latents = np.concatenate(parts)
    with written_whole(path) as draft, draft.open("wb") as file:
        np.save(file, latents)
    return latents

"""Trains the attribute checker's detector on rendered scenes, with the blemishes that generated images have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from quality.checker import AttributeChecker, Detector, Vocabulary
from training import scenes
from training.dataset import SceneData
from training.loop import train
from training.vae import to_tensor

GRID = 8


def vocabulary() -> Vocabulary:
    return Vocabulary(
        scenes.SHAPES, scenes.COLOURS, scenes.TEXTURES, scenes.SIZES, scenes.BACKGROUNDS, scenes.RELATIONS
    )


def centre_labels(objects: np.ndarray, cells: int = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    """Per cell of a grid: int64 [B, cells², 5] (an object's centre is here or not; its shape, colour, texture, size,
    −1 where none) and float [B, cells², 2], how far the centre lies from the middle of the cell, in cells."""
    grid = np.full((len(objects), cells * cells, 5), -1, np.int64)
    grid[..., 0] = 0
    offset = np.zeros((len(objects), cells * cells, 2), np.float32)
    for i in range(objects.shape[1]):
        row = objects[:, i].astype(np.int64)
        there = np.flatnonzero(row[:, 0] >= 0)
        x, y = row[there, 7] * cells / 1000, row[there, 8] * cells / 1000
        column, line = np.minimum(x.astype(int), cells - 1), np.minimum(y.astype(int), cells - 1)
        cell = line * cells + column
        grid[there, cell, 0] = 1
        grid[there, cell, 1:] = row[there, :4]
        offset[there, cell] = np.stack([x - column - 0.5, y - line - 0.5], 1)
    return torch.from_numpy(grid), torch.from_numpy(offset)


def blemish(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, noise and contrast changes as a small autoencoder or denoiser leaves them."""
    b, device = len(images), images.device

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = rand(b, 1, 1, 1) * (rand(b, 1, 1, 1) < 0.6)
    images = images * (1 - mix) + soft * mix
    images = images * (0.85 + 0.3 * rand(b, 1, 1, 1)) + 0.12 * (rand(b, 3, 1, 1) - 0.5)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + 0.1 * rand(b, 1, 1, 1) * noise).clamp(-1, 1)


def detection_loss(
    cells: torch.Tensor, classes: tuple[int, ...], labels: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    present, *attributes, offset = cells.split(classes, -1)
    here = labels[..., 0].float()
    loss = F.binary_cross_entropy_with_logits(present.squeeze(-1), here, 1 + 4 * here)
    for i, a in enumerate(attributes):
        loss = loss + 0.5 * F.cross_entropy(a.flatten(0, 1), labels[..., i + 1].flatten(), ignore_index=-1)
    return loss + 0.5 * ((offset - offsets).abs().mean(-1) * here).sum() / here.sum().clamp(min=1)


def train_checker(data: SceneData, folder: Path, *, steps: int, batch: int, seed: int, device: str) -> AttributeChecker:
    torch.manual_seed(seed)
    words = vocabulary()
    detector = Detector(words).to(device, memory_format=torch.channels_last)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data), (batch,), generator=generator, device=device).sort().values.cpu().numpy()
        cells, grounds, _ = detector(blemish(to_tensor(data.images[index], device), generator))
        labels, offsets = centre_labels(data.objects[index])
        value = detection_loss(cells, words.cell_classes, labels.to(device), offsets.to(device))
        ground = torch.from_numpy(data.backgrounds[index, 0].astype(np.int64)).to(device)
        value = value + 0.5 * F.cross_entropy(grounds, ground)
        return value, {"loss": value.item()}

    trained = train("checker", detector, loss, steps=steps, lr=2e-3, folder=folder, seed=seed, flat=0.3)
    return AttributeChecker(trained, words, device)

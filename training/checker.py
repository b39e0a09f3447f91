"""Trains the detector of the attribute checker on rendered scenes, degraded as generated images are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from quality.checker import AttributeChecker, Detector, Vocabulary
from training import scenes
from training.dataset import SceneData
from training.detection import centre_labels, detection_loss
from training.loop import Schedule, train
from training.vae import to_tensor


def vocabulary() -> Vocabulary:
    """The words of the scenes, for the checker."""
    return Vocabulary(
        scenes.SHAPES, scenes.COLOURS, scenes.TEXTURES, scenes.SIZES, scenes.BACKGROUNDS, scenes.RELATIONS
    )


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Adds the blur, noise and contrast changes that a small autoencoder or denoiser causes."""
    b, device = len(images), images.device

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = rand(b, 1, 1, 1) * (rand(b, 1, 1, 1) < 0.6)
    images = images * (1 - mix) + soft * mix
    images = images * (0.85 + 0.3 * rand(b, 1, 1, 1)) + 0.12 * (rand(b, 3, 1, 1) - 0.5)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + 0.1 * rand(b, 1, 1, 1) * noise).clamp(-1, 1)


def train_checker(data: SceneData, folder: Path, *, steps: int, batch: int, seed: int, device: str) -> AttributeChecker:
    """Trains a checker from new weights; its checkpoints go to ``folder``."""
    torch.manual_seed(seed)
    words = vocabulary()
    detector = Detector(words).to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data), (batch,), generator=generator, device=device).sort().values.cpu().numpy()
        cells, grounds, _ = detector(degrade(to_tensor(data.images[index], device), generator))
        labels, offsets = centre_labels(data.objects[index])
        present, *attributes, offset = cells.split(words.cell_classes, -1)
        value = detection_loss(present, attributes, labels.to(device), offset, offsets.to(device))
        ground = torch.from_numpy(data.backgrounds[index, 0].astype(np.int64)).to(device)
        value = value + 0.5 * F.cross_entropy(grounds, ground)
        return value, {"loss": value.item()}

    trained = train("checker", detector, loss, Schedule(steps=steps, lr=2e-3, seed=seed, flat=0.3), folder)
    return AttributeChecker(trained, words, device)

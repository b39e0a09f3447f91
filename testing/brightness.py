"""A measure of quality that needs no model."""

from __future__ import annotations

import torch


class Brightness:
    """Scores an image by the mean of its pixels, from 0 to 1. It is also a discriminator."""

    def __init__(self, device: str = "cpu"):
        self.device = device

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        return self.score(images, prompts).tolist()

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return (images.float().mean((1, 2, 3)) + 1) / 2

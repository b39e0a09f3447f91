"""CLIP score: how well an image fits its prompt (Hessel et al. 2021), by any CLIP of transformers, ours or a hub's."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from weir.errors import ConfigError


class ClipScorer:
    """A CLIP with its tokenizer. Images are float [B, 3, H, W] in −1…1; they are resized to the tower's size."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, device: str = "cpu"):
        self.model = model.eval().to(device)
        self.tokenizer = tokenizer
        self.device = device

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> ClipScorer:
        """Loads a local folder or a hub name; raises ConfigError when it is neither."""
        try:
            return cls(
                CLIPModel.from_pretrained(name, dtype=torch.float32), CLIPTokenizer.from_pretrained(name), device
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{name}: not a CLIP model ({error})") from None

    @torch.no_grad()
    def embed_text(self, prompts: list[str]) -> torch.Tensor:
        """Unit vectors [B, D]."""
        batch = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(self.device)
        pooled = self.model.text_model(**batch).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1).cpu()

    @torch.no_grad()
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, D]."""
        size = self.model.config.vision_config.image_size
        images = images.to(self.device, torch.float32)
        if images.shape[-1] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        pooled = self.model.vision_model(images).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1).cpu()

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Cosine of every image with its own prompt, [B]."""
        return (self.embed_images(images) * self.embed_text(prompts)).sum(-1)

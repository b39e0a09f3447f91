"""CLIP score: how well an image fits its prompt (Hessel et al. 2021), by any CLIP of transformers, ours or a hub's.

PickScore (Kirstain et al. 2023) is the same by a CLIP that was tuned on people's choices, times its own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_processing_base import ImageProcessingMixin

from weir.errors import ConfigError


class ClipScorer:
    """A CLIP with its tokenizer. Images are float [B, 3, H, W] in −1…1; they are resized to the tower's size.

    Args:
        mean, std: of the pixels 0…1 that the tower was trained on, by channel.
        scaled: multiply cosines by the model's own scale, as PickScore is stated.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        device: str = "cpu",
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        scaled: bool = False,
    ):
        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
        self._scale = model.logit_scale.exp().item() if scaled else 1.0
        self.model = model.eval().to(device)
        self.tokenizer = tokenizer
        self.device = device

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str = "cpu",
        *,
        revision: str | None = None,
        processor: str | Path | None = None,
        scaled: bool = False,
    ) -> ClipScorer:
        """Loads a local folder or a hub name.

        Args:
            revision: of the hub's repository.
            processor: where tokenizer and preprocessing lie, if not with the model.

        Raises:
            ConfigError: it is neither, or no CLIP.
        """
        beside, of_beside = (name, revision) if processor is None else (processor, None)
        try:
            pixels, _ = ImageProcessingMixin.get_image_processor_dict(beside, revision=of_beside)
            return cls(
                CLIPModel.from_pretrained(name, revision=revision, dtype=torch.float32, use_safetensors=True),
                CLIPTokenizer.from_pretrained(beside, revision=of_beside),
                device,
                mean=pixels["image_mean"],
                std=pixels["image_std"],
                scaled=scaled,
            )
        except (OSError, ValueError, KeyError) as error:
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
        pooled = self.model.vision_model(((images / 2 + 0.5) - self._mean) / self._std).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1).cpu()

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Cosine of every image with its own prompt, [B]; times the model's scale where that was asked for."""
        return self._scale * (self.embed_images(images) * self.embed_text(prompts)).sum(-1)

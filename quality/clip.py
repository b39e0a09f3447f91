"""CLIP score (Hessel et al. 2021): how well an image fits its prompt, by a local CLIP or one of the Hugging Face hub.

PickScore (Kirstain et al. 2023) is the score of a CLIP that was tuned on human preferences, times the model's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_processing_base import ImageProcessingMixin

from weir.errors import ConfigError


class ClipScorer:
    """A CLIP with its tokenizer. Images are float [B, 3, H, W] in −1…1 and are resized to the input size of the tower.

    Args:
        mean, std: of the training images' pixels in 0…1, by channel.
        scaled: multiply cosines by the model's scale, as PickScore does.
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
            revision: of the hub repository.
            processor: folder or hub name of the tokenizer and the preprocessing, if not that of the model.

        Raises:
            ConfigError: the name is neither a folder nor on the hub, or the model is not a CLIP.
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
        """Embeddings of prompts, unit vectors [B, D]."""
        batch = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(self.device)
        pooled = self.model.text_model(**batch).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1).cpu()

    @torch.no_grad()
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of images, unit vectors [B, D]."""
        return F.normalize(self.model.visual_projection(self._seen(images).pooler_output), dim=-1).cpu()

    @torch.no_grad()
    def embed_patches(self, images: torch.Tensor) -> torch.Tensor:
        """States of the patches of images after the last layer, [B, patches, D]."""
        return self._seen(images).last_hidden_state[:, 1:]

    def _seen(self, images: torch.Tensor) -> Any:
        """Output of the vision tower."""
        side = self.model.config.vision_config.image_size
        images = images.to(self.device, torch.float32)
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        return self.model.vision_model(((images / 2 + 0.5) - self._mean) / self._std)

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Cosine similarity of every image with its prompt, [B]; times the model's scale if ``scaled`` was set."""
        return self._scale * (self.embed_images(images) * self.embed_text(prompts)).sum(-1)

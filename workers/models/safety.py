"""Checkers of finished images: the published one of Stable Diffusion, or one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers.image_processing_base import ImageProcessingMixin

from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.moderation import Moderation
from weir.own_code import is_own, made

#: What moderation ``low`` adds to the cosine from which a concept is found.
LOW_MARGIN = 0.02
#: What is taken from that cosine when one of the concepts that need special care is found.
_CARE_MARGIN = 0.01


class SafetyChecker(Protocol):
    """Finds images that must not be shown."""

    def blocked(self, images: torch.Tensor, levels: Sequence[Moderation]) -> Sequence[bool]:
        """Whether to block each image, [B, 3, H, W] in −1…1, at its own level, ``auto`` or ``low``."""
        ...


class ConceptChecker:
    """The safety checker of Stable Diffusion: an image is blocked if its CLIP embedding is close to that of a concept.

    Concepts and thresholds are in the weights, ``CompVis/stable-diffusion-safety-checker`` for example.

    Args:
        mean, std: of the training images' pixels in 0…1, by channel.
    """

    def __init__(self, model: StableDiffusionSafetyChecker, device: str, mean: Sequence[float], std: Sequence[float]):
        self._model = model.eval().to(device)
        self._device = device
        self._mean, self._std = (torch.tensor(it, device=device).view(3, 1, 1) for it in (mean, std))

    @classmethod
    def load(cls, name: str, device: str, revision: str | None = None) -> ConceptChecker:
        """Loads a local folder or a hub name.

        Raises:
            ConfigError: the name is neither a folder nor on the hub, or the model is no safety checker.
        """
        try:
            pixels, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
            model, found = StableDiffusionSafetyChecker.from_pretrained(
                name, revision=revision, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            if found["missing_keys"]:
                raise ValueError(f"its weights have no {min(found['missing_keys'])}")
            return cls(model, device, pixels["image_mean"], pixels["image_std"])
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"safety_checker: {name} is no safety checker of Stable Diffusion ({error}); name a folder or a "
                "repository with the files of CompVis/stable-diffusion-safety-checker, or module:name of your own"
            ) from None

    @torch.no_grad()
    def blocked(self, images: torch.Tensor, levels: Sequence[Moderation]) -> list[bool]:
        model = self._model
        embedded = F.normalize(model.visual_projection(model.vision_model(self._pixels(images)).pooler_output), dim=-1)
        special = embedded @ F.normalize(model.special_care_embeds, dim=-1).T - model.special_care_embeds_weights
        margin = embedded.new_tensor([LOW_MARGIN if level == "low" else 0.0 for level in levels])
        margin = margin - _CARE_MARGIN * _positive(special).any(1)
        found = embedded @ F.normalize(model.concept_embeds, dim=-1).T - model.concept_embeds_weights
        return _positive(found - margin[:, None]).any(1).tolist()

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """The middle square of each image, in the size of the tower."""
        side = self._model.config.vision_config.image_size
        images = images.to(self._device, torch.float32) / 2 + 0.5
        height, width = images.shape[-2:]
        scale = side / min(height, width)
        height, width = max(side, round(height * scale)), max(side, round(width * scale))
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (height - side) // 2, (width - side) // 2
        return (images[..., top : top + side, left : left + side] - self._mean) / self._std


def _positive(scores: torch.Tensor) -> torch.Tensor:
    """Which scores are above 0 when they are rounded as in diffusers."""
    return scores.round(decimals=3) > 0


def family_safety_checker(family: FamilyConfig, device: str = "cpu") -> SafetyChecker | None:
    """The checker of a family's images, or None.

    Raises:
        ConfigError: the checker cannot be loaded.
    """
    name = family.safety_checker
    if name is None:
        return None
    if is_own(name):
        checker: SafetyChecker = made(name, "safety_checker", device, has=("blocked",))
        return checker
    return ConceptChecker.load(name, device, family.safety_checker_revision)

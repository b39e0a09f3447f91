"""Finds the weights because of which a variant generates no images."""

from __future__ import annotations

import torch
from torch import nn

from weir.config import FamilyConfig
from weir.errors import ConfigError
from workers.models.architectures.architecture import Architecture
from workers.models.source import denoiser_source, inpainting_key, inpainting_source, pipeline_source


def unusable(family: FamilyConfig, key: str, model: Architecture, problem: str) -> ConfigError:
    """The error of a variant whose images of the warm-up failed; names its weights and, if it finds it, the tensor.

    Args:
        key: key of the variant, or of its inpainting UNet.
        problem: message of a failed image.
    """
    broken = _not_finite(model)
    variant = next(it for it in family.keys if key in (it, inpainting_key(it)))
    inpainting = None if key == variant else inpainting_source(family, variant)
    source = inpainting or denoiser_source(family, variant)
    if broken is not None and broken[0] != model.denoiser_part:
        source = pipeline_source(family, variant)
    if broken is None:
        return source.error(f"an image of {key} failed in the warm-up", problem)
    part, name = broken
    what = f"an image of {key} failed in the warm-up: {name} of its {part} has values that are not finite numbers"
    return source.error(what, "fetch or write the weights again")


def _not_finite(model: Architecture) -> tuple[str, str] | None:
    """Part and name of the first tensor with values that are not finite; None if all weights are finite."""
    for part, module in model.pipeline.components.items():
        if isinstance(module, nn.Module):
            for name, tensor in module.state_dict().items():
                if not torch.isfinite(tensor).all():
                    return part, name
    return None

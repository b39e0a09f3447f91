"""Finds the weights because of which a variant generates no images."""

from __future__ import annotations

import torch
from torch import nn

from weir.config import FamilyConfig
from weir.errors import ConfigError
from workers.models.architectures.architecture import Architecture
from workers.models.source import denoiser_source, inpainting_source, pipeline_source


def unusable(
    family: FamilyConfig, key: str, model: Architecture, problem: str, *, inpaints: bool = False
) -> ConfigError:
    """The error of a variant whose images of the warm-up failed; names its weights and, if it finds it, the tensor.

    Args:
        key: key of the variant.
        inpaints: whether its inpainting UNet generated them.
        problem: message of a failed image.
    """
    broken = _not_finite(model)
    source = (inpainting_source(family, key) if inpaints else None) or denoiser_source(family, key)
    if broken is not None and broken[0] != model.denoiser_part:
        source = pipeline_source(family, key)
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

"""The architectures that Weir serves, by diffusers' pipeline class."""

from __future__ import annotations

from workers.models.architectures.architecture import Architecture, Pipeline
from workers.models.architectures.flux import Flux
from workers.models.architectures.stable_diffusion import StableDiffusion
from workers.models.architectures.stable_diffusion_3 import StableDiffusion3
from workers.models.architectures.stable_diffusion_xl import StableDiffusionXL
from workers.models.architectures.z_image import ZImage

ARCHITECTURES: dict[str, type[Architecture]] = {
    it.pipeline_class: it for it in (StableDiffusionXL, StableDiffusion, StableDiffusion3, Flux, ZImage)
}

#: By diffusers' pipeline class for inpainting.
INPAINTING = {it.inpainting_class: it for it in ARCHITECTURES.values() if it.inpainting_class is not None}


def adapt(pipeline: Pipeline) -> Architecture:
    """A loaded pipeline as the engine uses it."""
    return ARCHITECTURES[type(pipeline).__name__](pipeline)

"""The pictures that edits start from, and what stays of them."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from weir.core import Edit, ImageSize
from weir.errors import InvalidRequest
from workers.engine.samplers import Schedule


class Pictures(NamedTuple):
    """The pictures of an edit.

    Attributes:
        image: float32 [3, H, W] in −1…1.
        generated: bool [1, H, W], where the mask asks for something new; None: everywhere.
    """

    image: torch.Tensor
    generated: torch.Tensor | None

    @classmethod
    def of(cls, edit: Edit, size: ImageSize, device: torch.device) -> Pictures:
        """Decodes the pictures of an edit.

        Raises:
            InvalidRequest: one of them is damaged, or has another size than the request.
        """
        image = torch.from_numpy(_decoded("edit.image", edit.image, "RGB", size)).permute(2, 0, 1) / 127.5 - 1
        if edit.mask is None:
            return cls(image.to(device), None)
        mask = torch.from_numpy(_decoded("edit.mask", edit.mask, "L", size))[None]
        return cls(image.to(device), mask.to(device) >= 128)

    @property
    def kept(self) -> torch.Tensor:
        """The image with grey where it is generated."""
        return self.image if self.generated is None else self.image * ~self.generated


class Unchanged(NamedTuple):
    """The parts of a picture that stay as they are.

    Attributes:
        latent: the picture's latent, float32 [C, H/f, W/f]; for an inpainting UNet that of :attr:`Pictures.kept`.
        noise: what brings it to the noise level of a step, of the same shape; None for an inpainting UNet, which
            generates all of the latent.
        weight: 1 where the latent is generated, and 0 where it stays, [1, H/f, W/f].
        pictures: on the device.
    """

    latent: torch.Tensor
    noise: torch.Tensor | None
    weight: torch.Tensor
    pictures: Pictures

    @classmethod
    def of(cls, pictures: Pictures, latent: torch.Tensor, noise: torch.Tensor | None) -> Unchanged | None:
        """None where everything is generated. The mask is reduced to the latent's shape as in diffusers."""
        if pictures.generated is None:
            return None
        weight = interpolate(pictures.generated[None].float(), size=latent.shape[1:])[0]
        return cls(latent, noise, weight, pictures)

    @property
    def channels(self) -> torch.Tensor | None:
        """What an inpainting UNet takes besides the latent, mask first, [1 + C, H/f, W/f]; None for another one."""
        return torch.cat([self.weight, self.latent]) if self.noise is None else None

    def in_latent(self, latent: torch.Tensor, schedule: Schedule, step: int) -> torch.Tensor:
        """The latent [C, H/f, W/f] that enters a step, with these parts at the step's noise level."""
        if self.noise is None:
            return latent
        return (1 - self.weight) * schedule.noised(self.latent, self.noise, step) + self.weight * latent

    def in_image(self, image: torch.Tensor) -> torch.Tensor:
        """The finished image [3, H, W] in −1…1 with these parts in it, to the pixel."""
        assert self.pictures.generated is not None
        return torch.where(self.pictures.generated, image, self.pictures.image)


def blank_edit(size: ImageSize) -> Edit:
    """An edit for a warm-up: a grey picture whose mask covers all of it."""
    image, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", size, "grey").save(image, "PNG")
    Image.new("L", size, "white").save(mask, "PNG")
    return Edit(image.getvalue(), mask.getvalue(), 1.0)


def _decoded(name: str, png: bytes, mode: str, size: ImageSize) -> Any:
    """The pixels of a PNG in a mode, uint8 [H, W] or [H, W, 3]."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            if opened.size != size:
                raise InvalidRequest(f"{name} has {ImageSize(*opened.size)} pixels; the request has {size}", param=name)
            return np.array(opened.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidRequest(f"{name} is not a PNG: {error}", param=name) from None

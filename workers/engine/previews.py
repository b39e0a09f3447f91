"""Low-cost previews: pictures from latents by one linear map, learnt from the images that the decoder makes anyway."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Previews:
    """Least squares from a latent's channels at one place to the mean colour there, over all images decoded so far.

    A VAE's latents are close to linear in colour, so that a map of C + 1 by 3 numbers gives a recognisable picture at
    the latents' resolution, for a thousandth of the decoder's work.
    """

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None  # [C + 1, C + 1], the normal equations' left side
        self._outputs: torch.Tensor | None = None  # [C + 1, 3], their right side

    def learn(self, latents: torch.Tensor, images: torch.Tensor) -> None:
        """Takes in finished latents [B, C, h, w] and their images [B, 3, H, W]; those that are not finite are left."""
        fine = (images.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)).nonzero().flatten()
        x = _with_one(latents[fine])
        y = F.adaptive_avg_pool2d(images[fine], (latents.shape[2], latents.shape[3])).permute(0, 2, 3, 1).reshape(-1, 3)
        inputs, outputs = x.T @ x, x.T @ y
        self._inputs = inputs if self._inputs is None else self._inputs + inputs
        self._outputs = outputs if self._outputs is None else self._outputs + outputs

    def image(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Pictures [B, 3, h, w] in about −1…1 of estimated finished latents [B, C, h, w]; None before any image."""
        inputs, outputs = self._inputs, self._outputs
        if inputs is None or outputs is None:
            return None
        ridge = 1e-6 * inputs.diagonal().mean() * torch.eye(len(inputs), device=inputs.device)
        colours = _with_one(latents) @ torch.linalg.solve(inputs + ridge, outputs)
        batch, _, height, width = latents.shape
        return colours.reshape(batch, height, width, 3).permute(0, 3, 1, 2)


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """Rows [B · h · w, C + 1]: the channels of each place, and 1."""
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2).float()
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)

"""Low-cost previews: a linear map from latents to colours, fitted to the images that the decoder produces."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Previews:
    """Least-squares map from a latent's channels at a position to the mean colour there, over all decoded images.

    A VAE's latents are nearly linear in colour, so a map of C + 1 by 3 numbers gives a recognisable image at the
    latents' resolution, at a thousandth of the decoder's cost.
    """

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None  # [C + 1, C + 1], the normal equations' left side
        self._outputs: torch.Tensor | None = None  # [C + 1, 3], their right side

    def learn(self, latents: torch.Tensor, images: torch.Tensor) -> None:
        """Adds finished latents [B, C, h, w] and their images [B, 3, H, W] to the fit; skips non-finite ones."""
        fine = (images.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)).nonzero().flatten()
        x = _with_one(latents[fine])
        y = F.adaptive_avg_pool2d(images[fine], (latents.shape[2], latents.shape[3])).permute(0, 2, 3, 1).reshape(-1, 3)
        inputs, outputs = x.T @ x, x.T @ y
        self._inputs = inputs if self._inputs is None else self._inputs + inputs
        self._outputs = outputs if self._outputs is None else self._outputs + outputs

    def image(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Images [B, 3, h, w], about −1…1, of estimated finished latents [B, C, h, w]; None before the first fit."""
        inputs, outputs = self._inputs, self._outputs
        if inputs is None or outputs is None:
            return None
        ridge = 1e-6 * inputs.diagonal().mean() * torch.eye(len(inputs), device=inputs.device)
        colours = _with_one(latents) @ torch.linalg.solve(inputs + ridge, outputs)
        batch, _, height, width = latents.shape
        return colours.reshape(batch, height, width, 3).permute(0, 3, 1, 2)


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """Rows [B · h · w, C + 1]: the channels of each position, and 1."""
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2).float()
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)

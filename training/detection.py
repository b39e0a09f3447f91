"""Object detection on a grid of cells: the labels and the loss of all image networks of the family."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

GRID = 8


def centre_labels(objects: np.ndarray, cells: int = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of each cell of a grid.

    Returns:
        int64 [B, cells², 5]: whether the centre of an object is in the cell, and its shape, colour, texture and size
        (−1 without an object); and float [B, cells², 2]: offset of that centre from the middle of the cell, in cells.
    """
    grid = np.full((len(objects), cells * cells, 5), -1, np.int64)
    grid[..., 0] = 0
    offset = np.zeros((len(objects), cells * cells, 2), np.float32)
    for i in range(objects.shape[1]):
        row = objects[:, i].astype(np.int64)
        there = np.flatnonzero(row[:, 0] >= 0)
        x, y = row[there, 7] * cells / 1000, row[there, 8] * cells / 1000
        column, line = np.minimum(x.astype(int), cells - 1), np.minimum(y.astype(int), cells - 1)
        cell = line * cells + column
        grid[there, cell, 0] = 1
        grid[there, cell, 1:] = row[there, :4]
        offset[there, cell] = np.stack([x - column - 0.5, y - line - 0.5], 1)
    return torch.from_numpy(grid), torch.from_numpy(offset)


def detection_loss(
    present: torch.Tensor,
    attributes: list[torch.Tensor],
    labels: torch.Tensor,
    offset: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of predictions against :func:`centre_labels`.

    Args:
        present: logits [B, cells, 1].
        attributes: logits [B, cells, classes] of each attribute.
        offset: predicted offsets [B, cells, 2] of the centres; None omits them.
    """
    here = labels[..., 0].float()
    loss = F.binary_cross_entropy_with_logits(present.squeeze(-1), here, 1 + 4 * here)  # most cells are empty
    for i, logits in enumerate(attributes):
        loss = loss + 0.5 * F.cross_entropy(logits.flatten(0, 1), labels[..., i + 1].flatten(), ignore_index=-1)
    if offset is not None and offsets is not None:
        loss = loss + 0.5 * ((offset - offsets).abs().mean(-1) * here).sum() / here.sum().clamp(min=1)
    return loss

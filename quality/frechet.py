"""The Fréchet distance between two sets of image features (Heusel et al. 2017): "FID" with features of Inception."""

from __future__ import annotations

import numpy as np
from scipy import linalg


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½) of features [N, D] and [M, D].

    The distance falls with the number of images, so compare only figures of equal N, beside the distance between two
    sets of real images.

    Raises:
        ValueError: fewer than two images in a set, or features of different width.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"need two sets of at least two features of one width, got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    gap = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # tr((Σa Σb)^½) = tr((Σa^½ Σb Σa^½)^½): the right side is symmetric, so it is stable for singular covariances.
    values, vectors = linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)

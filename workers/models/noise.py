"""Random generators for the initial noise of images, from 64-bit seeds."""

from __future__ import annotations

import hashlib

import torch

#: PyTorch's CPU generator accepts 64-bit seeds and ignores their upper half.
_HALF = 2**32


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU, the same for the same seed on every machine.

    Args:
        seed: 0…2⁶⁴ − 1. Seeds below 2³² are passed to PyTorch unchanged, so that diffusers gives the same image.
            Larger seeds are hashed, because seeds that differ only in the upper half would give the same image.
    """
    if seed >= _HALF:
        seed = int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=4).digest())
    return torch.Generator().manual_seed(seed)

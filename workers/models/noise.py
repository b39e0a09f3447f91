"""The random numbers of one image: all 64 bits of its seed count."""

from __future__ import annotations

import hashlib

import torch

#: PyTorch's generator on the CPU takes seeds of 64 bits, and looks at the lower half of them alone.
_HALF = 2**32


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU, the same for the same seed on every machine.

    Args:
        seed: 0…2⁶⁴ − 1. Below 2³² it is PyTorch's own, so that diffusers gives the same image; above, the generator is
            seeded by a digest, for otherwise seeds that differ in the upper half alone would give the same image.
    """
    if seed >= _HALF:
        seed = int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=4).digest())
    return torch.Generator().manual_seed(seed)

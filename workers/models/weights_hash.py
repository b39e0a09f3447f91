"""What tells the weights of two models apart."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

#: Numbers of every weight that tell it from another.
_SAMPLES = 64


def weights_digest(model: nn.Module) -> str:
    """Of the names of all weights and a few numbers of each: a LoRA merged into the attention makes other weights, and
    gigabytes need not be read."""
    digest = hashlib.blake2b(digest_size=6)
    samples = []
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        flat = weight.detach().flatten()
        samples.append(flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].float())
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()

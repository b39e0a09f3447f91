"""A hash that identifies the weights of models."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

#: Number of values of each weight tensor that enter the hash.
_SAMPLES = 64


def weights_hash(*models: nn.Module) -> str:
    """Hash of the names and shapes of all weight tensors and of a few values of each.

    It also changes when a LoRA is merged into the attention, and does not read all weights.
    """
    digest = hashlib.blake2b(digest_size=6)
    for model in models:
        samples = []
        for name, weight in sorted(model.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            flat = weight.detach().flatten()
            samples.append(flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].float())
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()

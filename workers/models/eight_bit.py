"""Linear layers whose weights are kept in 8 bits, for large text encoders.

Each row of a weight has its own scale, the largest absolute value of the row over 127 (absmax quantisation, Dettmers et
al. 2022, section 2); activations stay in the precision of the model. A text encoder runs once for a prompt, so that its
memory counts for more than its speed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

#: Largest value of a quantised weight; −128 is not used.
_MOST = 127


class EightBitLinear(nn.Module):
    """A linear layer of the same function, up to rounding.

    Attributes:
        weight: int8 [out, in].
        scale: of each row, [out, 1].
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True) / _MOST).clamp(min=torch.finfo(torch.float16).tiny)
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiplies x [..., in] with the weight in x's precision."""
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def keep_in_eight_bits(model: nn.Module) -> None:
    """Replaces all linear layers of a model by :class:`EightBitLinear`."""
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, EightBitLinear(layer))

"""Linear layers in float32 on the CPU by oneDNN, which diffusers' convolutions use already, in place of MKL.

MKL computes on AMD's processors with half of what they have; oneDNN asks the processor what it can. torch chooses MKL
for every linear layer in float32 and has no switch for it, only the operator that its compiler puts in place of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Multiplications and additions below which oneDNN's call costs more than it gains.
_WORTH_IT = 2_000_000


def through_onednn(model: torch.nn.Module) -> None:
    """Gives every float32 linear layer of ``model`` on the CPU oneDNN's product where it is large enough to pay.

    The result differs from MKL's by rounding alone. Without oneDNN, and for everything else, nothing changes.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.dtype == torch.float32:
            module.forward = _multiplied(module, module.forward)  # type: ignore[assignment,method-assign]


def _multiplied(
    module: torch.nn.Linear, otherwise: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    multiply = torch.ops.mkldnn._linear_pointwise

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() * module.out_features < _WORTH_IT:
            return otherwise(x)
        return multiply(x, module.weight, module.bias, "none", [], "")

    return forward

"""Runs float32 linear layers on the CPU with oneDNN in place of MKL.

MKL uses only half of the vector width of AMD processors; oneDNN, which torch's convolutions use already, detects it.
torch always uses MKL for float32 linear layers and has no option for it, only the operator that its compiler inserts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Number of multiplications below which the overhead of oneDNN's call exceeds its gain.
_MIN_OPERATIONS = 2_000_000


def use_onednn(model: torch.nn.Module) -> None:
    """Makes the float32 linear layers of ``model`` use oneDNN for products that are large enough.

    Results differ from MKL's by rounding only. Other layers do not change; without oneDNN, nothing changes.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.dtype == torch.float32:
            module.forward = _onednn_forward(module, module.forward)  # type: ignore[assignment,method-assign]


def _onednn_forward(
    module: torch.nn.Linear, original: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    multiply = torch.ops.mkldnn._linear_pointwise

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() * module.out_features < _MIN_OPERATIONS:
            return original(x)
        return multiply(x, module.weight, module.bias, "none", [], "")

    return forward

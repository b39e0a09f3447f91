"""Linear layers through oneDNN."""

import torch
from torch.nn.functional import gelu, linear

from workers.models.linear import use_onednn


def test_large_and_small_products_equal_those_of_the_original_layer() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32, bias=False))
    use_onednn(layers)
    for rows in (1, 7, 64, 1024):
        x = torch.randn(2, rows, 64)
        with torch.inference_mode():
            expected = linear(gelu(linear(x, layers[0].weight, layers[0].bias)), layers[2].weight)
            assert torch.allclose(layers(x), expected, atol=1e-5)


def test_layers_in_another_precision_are_not_changed() -> None:
    layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    use_onednn(layer)
    assert "forward" not in vars(layer)

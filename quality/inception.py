"""Pooled features of Inception-v3 (Szegedy et al. 2015), for the Fréchet distance between sets of natural images.

The network is the variant of FID's reference implementation: average pools exclude the padding, and the last block has
a maximum pool. Its weights have the names of torchvision and timm, so files of both can be loaded. It is implemented
here because every library with this network needs a torchvision that matches the exact build of torch.

Published FIDs use the weights of 2015-12-05; compare only figures that were taken with the same weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from weir.errors import ConfigError

#: Side of the network's input, pixels.
SIDE = 299
_FILE = "model.safetensors"
_UNUSED = ("AuxLogits.", "fc.")


class _Conv(nn.Module):
    def __init__(self, inside: int, out: int, kernel: int | tuple[int, int], stride: int = 1):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        # without padding in the stem and where the grid shrinks; elsewhere `padded` adds padding
        self.conv = nn.Conv2d(inside, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def padded(self) -> _Conv:
        height, width = self.conv.kernel_size
        self.conv.padding = (height // 2, width // 2)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


def _same(inside: int, out: int, kernel: int | tuple[int, int]) -> _Conv:
    return _Conv(inside, out, kernel).padded()


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, inside: int, pool: int, w: int):
        super().__init__()
        self.branch1x1 = _Conv(inside, 64 // w, 1)
        self.branch5x5_1 = _Conv(inside, 48 // w, 1)
        self.branch5x5_2 = _same(48 // w, 64 // w, 5)
        self.branch3x3dbl_1 = _Conv(inside, 64 // w, 1)
        self.branch3x3dbl_2 = _same(64 // w, 96 // w, 3)
        self.branch3x3dbl_3 = _same(96 // w, 96 // w, 3)
        self.branch_pool = _Conv(inside, pool // w, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, inside: int, w: int):
        super().__init__()
        self.branch3x3 = _Conv(inside, 384 // w, 3, 2)
        self.branch3x3dbl_1 = _Conv(inside, 64 // w, 1)
        self.branch3x3dbl_2 = _same(64 // w, 96 // w, 3)
        self.branch3x3dbl_3 = _Conv(96 // w, 96 // w, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    def __init__(self, inside: int, seven: int, w: int):
        super().__init__()
        c, out, row, column = seven // w, 192 // w, (1, 7), (7, 1)
        self.branch1x1 = _Conv(inside, out, 1)
        self.branch7x7_1 = _Conv(inside, c, 1)
        self.branch7x7_2 = _same(c, c, row)
        self.branch7x7_3 = _same(c, out, column)
        self.branch7x7dbl_1 = _Conv(inside, c, 1)
        self.branch7x7dbl_2 = _same(c, c, column)
        self.branch7x7dbl_3 = _same(c, c, row)
        self.branch7x7dbl_4 = _same(c, c, column)
        self.branch7x7dbl_5 = _same(c, out, row)
        self.branch_pool = _Conv(inside, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, inside: int, w: int):
        super().__init__()
        out = 192 // w
        self.branch3x3_1 = _Conv(inside, out, 1)
        self.branch3x3_2 = _Conv(out, 320 // w, 3, 2)
        self.branch7x7x3_1 = _Conv(inside, out, 1)
        self.branch7x7x3_2 = _same(out, out, (1, 7))
        self.branch7x7x3_3 = _same(out, out, (7, 1))
        self.branch7x7x3_4 = _Conv(out, out, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    def __init__(self, inside: int, w: int, last: bool):
        super().__init__()
        c = 384 // w
        self.branch1x1 = _Conv(inside, 320 // w, 1)
        self.branch3x3_1 = _Conv(inside, c, 1)
        self.branch3x3_2a = _same(c, c, (1, 3))
        self.branch3x3_2b = _same(c, c, (3, 1))
        self.branch3x3dbl_1 = _Conv(inside, 448 // w, 1)
        self.branch3x3dbl_2 = _same(448 // w, c, 3)
        self.branch3x3dbl_3a = _same(c, c, (1, 3))
        self.branch3x3dbl_3b = _same(c, c, (3, 1))
        self.branch_pool = _Conv(inside, 192 // w, 1)
        self._last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self._last else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """Maps images [B, 3, H, W] in −1…1 to pooled features [B, 2048 / narrow].

    Args:
        narrow: divisor of the width of every layer, a power of two; above 1 in tests only.
    """

    def __init__(self, narrow: int = 1):
        super().__init__()
        w = narrow
        self.Conv2d_1a_3x3 = _Conv(3, 32 // w, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32 // w, 32 // w, 3)
        self.Conv2d_2b_3x3 = _same(32 // w, 64 // w, 3)
        self.Conv2d_3b_1x1 = _Conv(64 // w, 80 // w, 1)
        self.Conv2d_4a_3x3 = _Conv(80 // w, 192 // w, 3)
        self.Mixed_5b = _A(192 // w, 32, w)
        self.Mixed_5c = _A(256 // w, 64, w)
        self.Mixed_5d = _A(288 // w, 64, w)
        self.Mixed_6a = _B(288 // w, w)
        self.Mixed_6b = _C(768 // w, 128, w)
        self.Mixed_6c = _C(768 // w, 160, w)
        self.Mixed_6d = _C(768 // w, 160, w)
        self.Mixed_6e = _C(768 // w, 192, w)
        self.Mixed_7a = _D(768 // w, w)
        self.Mixed_7b = _E(1280 // w, w, last=False)
        self.Mixed_7c = _E(2048 // w, w, last=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


class InceptionFeatures:
    """Features for the Fréchet distance, with weights from a file, a folder or a hub repository."""

    def __init__(self, model: InceptionV3, device: str = "cpu"):
        self._model = model.eval().to(device)
        self._device = device

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> InceptionFeatures:
        """Loads weights in safetensors, for example ``timm/inception_v3.tf_in1k``.

        Raises:
            ConfigError: the weights do not exist, or are not of an Inception-v3.
        """
        path = Path(name)
        try:
            if path.is_dir():
                path = path / _FILE
            elif not path.is_file():
                path = Path(hf_hub_download(str(name), _FILE))
            weights = {k: v.float() for k, v in load_file(path).items() if not k.startswith(_UNUSED)}
            first = weights["Conv2d_1a_3x3.conv.weight"]
            model = InceptionV3(narrow=32 // len(first))
            model.load_state_dict(weights)
        except (
            OSError,
            KeyError,
            ValueError,
            RuntimeError,
            SafetensorError,
            HfHubHTTPError,
            HFValidationError,
        ) as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(f"{name}: not the weights of an Inception-v3 as safetensors ({first_line})") from None
        return cls(model, device)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of images [B, 3, H, W] in −1…1."""
        return self._model(images.to(self._device, torch.float32)).cpu()

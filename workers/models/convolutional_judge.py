"""A discriminator of DiffServe's kind: a convolutional network that tells a last variant's images from a lighter one's.

It looks at the image alone. DiffServe trains an EfficientNet to tell real images from generated ones (Ahmad et al.
2025), and the probability of a real image is the confidence. Images of the last variant stand in for real ones, of
which a family has none. The network is a small residual one, trained from scratch.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from weir.config import FamilyConfig
from weir.errors import ConfigError
from workers.models.judge_files import read_judge
from workers.models.learned_parts import ConfidenceScale
from workers.models.matching_judge import Down, squares
from workers.models.weights_hash import weights_hash

#: Channels of the network's stages.
_STAGES = (3, 24, 48, 96, 96)


class ConvolutionalNet(nn.Module):
    """Maps images [B, 3, H, W] in −1…1 to the logit of an image of the last variant, [B, 1].

    Args:
        side: images are scaled to squares of this side, pixels.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side
        self.body = nn.Sequential(*(Down(a, b) for a, b in pairwise(_STAGES)))
        self.verdict = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * _STAGES[-1], 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.body(squares(images, self.side))
        found: torch.Tensor = self.verdict(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return found


class ConvolutionalJudge:
    """A trained :class:`ConvolutionalNet`."""

    kind = "convolutional"

    def __init__(self, net: ConvolutionalNet, scale: ConfidenceScale, device: str = "cpu"):
        self.net = net.eval().to(device)
        self._scale, self._device = scale, device
        self.version = weights_hash(self.net)

    @classmethod
    def load(cls, folder: Path | str, family: FamilyConfig, device: str = "cpu") -> ConvolutionalJudge:
        """Loads a folder that ``weir adopt`` wrote; it needs nothing of the family.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        folder = Path(folder)
        config, weights = read_judge(folder)
        try:
            net = ConvolutionalNet(config["side"])
            net.load_state_dict(weights)
            scale = ConfidenceScale.from_dict(config["scale"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{folder}: not a discriminator ({error}); train one with `weir adopt`") from None
        return cls(net, scale, device)

    @torch.no_grad()
    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Confidence 0…1 that each image, [B, 3, H, W] in −1…1, is as good as the last variant's."""
        found: list[float] = self._scale.confidence(self.net(images.to(self._device, torch.float32))).tolist()
        return found

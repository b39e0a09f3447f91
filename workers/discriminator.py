"""The discriminator: how likely is it that this light image is good enough for its prompt?

Unlike DiffServe's, which tells real images from generated ones and never sees the prompt, it reads both: the prompt's
tokens (from the family's CLIP) look at the cells of the image, and say whether what they ask for is there.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from weir.errors import ConfigError

#: Tokens of a prompt that are looked at.
MAX_TOKENS = 32


class _Mobile(nn.Module):
    """An inverted bottleneck (as in EfficientNet): expand, depthwise 3×3, project; residual where shapes allow."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        wide = 3 * inside
        self.body = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.keeps_shape = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.keeps_shape else self.body(x)


class DiscriminatorNet(nn.Module):
    """Images [B, 3, S, S] in −1…1 and token states [B, T, text_width] to one logit each [B]."""

    def __init__(self, image_size: int, text_width: int, width: int = 96):
        super().__init__()
        self.image_size = image_size
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, 2, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.SiLU(),
            _Mobile(48, 48, 1),
            _Mobile(48, width, 2),
            _Mobile(width, width, 1),
            _Mobile(width, width, 1),
        )
        self.place = nn.Parameter(0.02 * torch.randn(1, (image_size // 8) ** 2, width))
        self.text = nn.Linear(text_width, width)
        self.look = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.verdict = nn.Sequential(
            nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def cells(self, images: torch.Tensor) -> torch.Tensor:
        """What each cell of 8×8 pixels looks like, [B, (S/8)², width]."""
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        return self.trunk(images).flatten(2).transpose(1, 2)

    def forward(self, cells: torch.Tensor, tokens: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """``tokens`` [B, T, text_width]; ``padding`` [B, T], true where no token is; ``cells``: of :meth:`cells`."""
        memory = cells + self.place
        x = self.text(tokens)
        for layer in self.look:
            x = layer(x, memory, tgt_key_padding_mask=padding)
        there = (~padding).float().unsqueeze(-1)
        mean = (x * there).sum(1) / there.sum(1)
        worst = x.masked_fill(padding.unsqueeze(-1), -1e4).amax(1)  # one thing that is missing spoils the image
        return self.verdict(torch.cat([mean, worst, memory.mean(1)], -1)).squeeze(-1)


class Discriminator:
    """A trained network with the CLIP text tower that it reads prompts with."""

    def __init__(self, net: DiscriminatorNet, clip: CLIPModel, tokenizer: CLIPTokenizer, device: str = "cpu"):
        self.net = net.eval().to(device)
        self.text_model = clip.text_model.eval().to(device)
        self.tokenizer = tokenizer
        self.device = device

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> Discriminator:
        """Loads a folder with ``config.json`` (image_size, text_width, width, clip: relative folder or hub name) and
        ``model.safetensors``.

        Raises:
            ConfigError: something in it is missing or damaged.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            clip = folder / config.pop("clip")
            net = DiscriminatorNet(**config)
            net.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
            model = CLIPModel.from_pretrained(clip, dtype=torch.float32, use_safetensors=True)
            tokenizer = CLIPTokenizer.from_pretrained(clip)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ConfigError(f"{folder}: not a discriminator ({error}); train one with `weir train`") from None
        return cls(net, model, tokenizer, device)

    def save(self, folder: Path, clip: str) -> None:
        """Writes what :meth:`load` reads; ``clip`` is the path of the CLIP relative to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        net = self.net
        config = {
            "image_size": net.image_size,
            "text_width": net.text.in_features,
            "width": net.text.out_features,
            "clip": clip,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in net.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @torch.no_grad()
    def read(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states [B, 32, text_width] and padding mask [B, 32] of the prompts."""
        batch = self.tokenizer(
            prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.device)
        states = self.text_model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return states, batch.attention_mask == 0

    @torch.no_grad()
    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Confidence 0…1 that each image [B, 3, H, W] in −1…1 is good enough for its prompt."""
        cells = self.net.cells(images.to(self.device, torch.float32))
        return self.net(cells, *self.read(prompts)).sigmoid().tolist()

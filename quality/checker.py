"""The attribute checker: measures whether an image shows what its prompt asks for.

A small detector finds the objects of an image and their attributes. The prompt is parsed into requirements, and the
two are matched. The checker measures the quality of the embedded family and supports only prompts of that family's
grammar. It shares neither weights nor architecture with the discriminator, which is used for serving.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weir.errors import ConfigError
from weir.json_files import read_json

GOOD_ENOUGH = 0.8


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of the grammar, in the order of the detector's classes."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    textures: tuple[str, ...]
    sizes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    relations: tuple[str, ...]

    @property
    def cell_classes(self) -> tuple[int, ...]:
        """Numbers of outputs of a grid cell: present, shape, colour, texture, size, offset of the centre (x, y)."""
        return (1, len(self.shapes), len(self.colours), len(self.textures), len(self.sizes), 2)


@dataclass(frozen=True, slots=True)
class RequestedObject:
    """An object that a prompt asks for; None where the prompt does not state an attribute."""

    shape: str
    colour: str | None = None
    texture: str | None = None
    size: str | None = None


@dataclass(frozen=True, slots=True)
class DetectedObject:
    """An object that the detector found in an image; x and y are fractions of the image's side."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Requirements:
    """Everything a prompt asks for."""

    objects: tuple[RequestedObject, ...]
    background: str | None = None
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of comparing an image with its prompt.

    Attributes:
        attributes: share of the requirements that the image meets.
        exact: the image meets all requirements and shows no other object.
        held: whether it meets each requirement, in this order: for each object its shape and its stated colour, texture
            and size; the relation and the background, where stated; the number of objects.
    """

    attributes: float
    exact: bool
    held: tuple[bool, ...] = ()

    @property
    def good_enough(self) -> bool:
        """Whether four fifths of the requirements are met: all for one object, and all but a few for four."""
        return self.attributes >= GOOD_ENOUGH


def read_prompt(prompt: str, words: Vocabulary) -> Requirements | None:
    """The requirements of a prompt, or None when the prompt is not of the grammar."""
    text = re.sub(r"\s+", " ", prompt.strip().lower().rstrip("."))
    background = None
    ground = re.search(rf" on an? ({'|'.join(words.backgrounds)}) background$", text)
    if ground:
        background, text = ground.group(1), text[: ground.start()]
    relation = next((r for r in words.relations if f" {r} " in text), None)
    parts = text.split(f" {relation} ") if relation else re.split(r", | and ", text)
    objects = []
    for part in parts:
        tokens = part.split(" ")
        if tokens[0] not in ("a", "an") or len(tokens) < 2 or tokens[-1] not in words.shapes:
            return None
        stated: dict[str, str] = {}
        for token in tokens[1:-1]:
            kinds = {"colour": words.colours, "texture": words.textures, "size": words.sizes}
            kind = next((k for k, values in kinds.items() if token in values), None)
            if kind is None or kind in stated:
                return None
            stated[kind] = token
        objects.append(RequestedObject(tokens[-1], stated.get("colour"), stated.get("texture"), stated.get("size")))
    return Requirements(tuple(objects), background, relation)


def _relation_holds(relation: str, a: DetectedObject, b: DetectedObject) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return gap > 0 and gap >= 0.7 * max(abs(dx), abs(dy))


def judge(requirements: Requirements, found: tuple[DetectedObject, ...], background: str) -> Verdict:
    """The verdict of the best assignment of detected objects to requested ones; an extra or a missing object is an
    unmet requirement."""

    def met(w: RequestedObject, f: DetectedObject | None) -> list[bool]:
        if f is None:
            return [False] * (1 + sum(v is not None for v in (w.colour, w.texture, w.size)))
        checks = [w.shape == f.shape]
        checks += [v == g for v, g in ((w.colour, f.colour), (w.texture, f.texture), (w.size, f.size)) if v]
        return checks

    candidates: list[DetectedObject | None] = [*found, *[None] * max(0, len(requirements.objects) - len(found))]
    best: list[bool] = []
    for chosen in permutations(candidates, len(requirements.objects)):
        checks = [c for w, f in zip(requirements.objects, chosen, strict=True) for c in met(w, f)]
        if requirements.relation:
            a, b = chosen[0], chosen[1]
            checks.append(a is not None and b is not None and _relation_holds(requirements.relation, a, b))
        if sum(checks) >= sum(best) or not best:
            best = checks
    if requirements.background:
        best.append(requirements.background == background)
    best.append(len(found) == len(requirements.objects))
    return Verdict(sum(best) / len(best), all(best), tuple(best))


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class Detector(nn.Module):
    """Maps images [B, 3, 64, 64] in −1…1 to cells [B, 64, sum(cell_classes)], background logits [B, backgrounds], and
    pooled features [B, 128] for the Fréchet distance."""

    def __init__(self, words: Vocabulary):
        super().__init__()

        def down(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), _Residual(b))

        self.trunk = nn.Sequential(down(3, 32), down(32, 64), down(64, 96), _Residual(96), _Residual(96))
        self.cells = nn.Conv2d(96, sum(words.cell_classes), 1)
        self.pooled = nn.Linear(2 * 96, 128)
        self.background = nn.Linear(128, len(words.backgrounds))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.trunk(images)
        features = torch.relu(self.pooled(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))
        return self.cells(x).flatten(2).transpose(1, 2), self.background(features), features


class AttributeChecker:
    """Compares images with prompts. Load it from the family's folder ``checker/``."""

    def __init__(self, detector: Detector, words: Vocabulary, device: str = "cpu"):
        self.detector = detector.eval().to(device)
        self.words = words
        self.device = device

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> AttributeChecker:
        """Loads what :meth:`save` wrote.

        Raises:
            ConfigError: the folder or one of its two files is missing or damaged.
        """
        folder = Path(folder)
        try:
            fields = read_json(folder / "config.json")
            words = Vocabulary(**{k: tuple(v) for k, v in fields.items()})
            detector = Detector(words)
            detector.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"{folder}: not an attribute checker ({error}); rebuild it with `make train`") from None
        return cls(detector, words, device)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fields = {name: getattr(self.words, name) for name in Vocabulary.__dataclass_fields__}
        (folder / "config.json").write_text(json.dumps(fields, indent=1))
        weights = {
            k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in self.detector.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors")

    @torch.no_grad()
    def detect(self, images: torch.Tensor) -> list[tuple[tuple[DetectedObject, ...], str]]:
        """Objects and background of each image; images are [B, 3, 64, 64] in −1…1."""
        cells, grounds, _ = self.detector(images.to(self.device))
        side = round(cells.shape[1] ** 0.5)
        present, shape, colour, texture, size, offset = cells.float().cpu().split(self.words.cell_classes, -1)
        present = present.squeeze(-1).sigmoid()
        seen = []
        for b in range(len(images)):
            found: list[DetectedObject] = []
            for c in present[b].argsort(descending=True).tolist():
                if present[b, c] < 0.5:
                    break
                x = (c % side + 0.5 + float(offset[b, c, 0])) / side
                y = (c // side + 0.5 + float(offset[b, c, 1])) / side
                if any((x - f.x) ** 2 + (y - f.y) ** 2 < 0.12**2 for f in found):
                    continue  # the same object, detected in a neighbouring cell
                found.append(
                    DetectedObject(
                        self.words.shapes[int(shape[b, c].argmax())],
                        self.words.colours[int(colour[b, c].argmax())],
                        self.words.textures[int(texture[b, c].argmax())],
                        self.words.sizes[int(size[b, c].argmax())],
                        x,
                        y,
                    )
                )
                if len(found) == 6:
                    break
            seen.append((tuple(found), self.words.backgrounds[int(grounds[b].argmax())]))
        return seen

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features [B, 128] for the Fréchet distance."""
        return self.detector(images.to(self.device))[2].float().cpu()

    def check(self, images: torch.Tensor, prompts: list[str]) -> list[Verdict | None]:
        """One verdict for each image; None where the prompt is not of the grammar."""
        requirements = [read_prompt(p, self.words) for p in prompts]
        detected = self.detect(images)
        return [judge(r, *d) if r else None for r, d in zip(requirements, detected, strict=True)]

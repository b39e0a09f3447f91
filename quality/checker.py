"""The attribute checker: does an image show what its prompt asks?

A small detector finds every object of an image with its attributes; the prompt is read as a list of requirements; the
two are matched. It is the judge of the embedded family, works for prompts of the family's grammar only, and shares
neither weights nor architecture with the discriminator, which serves.
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
        """Sizes of a grid cell's answers: present, shape, colour, texture, size, offset of the centre (x, y)."""
        return (1, len(self.shapes), len(self.colours), len(self.textures), len(self.sizes), 2)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object that a prompt asks for; None: the prompt leaves it open."""

    shape: str
    colour: str | None = None
    texture: str | None = None
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """One object that an image shows; x and y are shares of the image's side."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Requirements:
    """Everything a prompt asks for."""

    objects: tuple[Wanted, ...]
    background: str | None = None
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``attributes``: share of the requirements that hold; ``exact``: all hold and nothing else is there.

    ``held``: which of them, in this order: of each object its shape and what is said of its colour, texture and size;
    the relation and the background, where said; the number of objects.
    """

    attributes: float
    exact: bool
    held: tuple[bool, ...] = ()

    @property
    def good_enough(self) -> bool:
        """Four fifths of what was asked hold: for one object everything, for four some slip is forgiven."""
        return self.attributes >= GOOD_ENOUGH


def read_prompt(prompt: str, words: Vocabulary) -> Requirements | None:
    """The requirements of a prompt, or None when it is not of the grammar."""
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
        said: dict[str, str] = {}
        for token in tokens[1:-1]:
            kinds = {"colour": words.colours, "texture": words.textures, "size": words.sizes}
            kind = next((k for k, values in kinds.items() if token in values), None)
            if kind is None or kind in said:
                return None
            said[kind] = token
        objects.append(Wanted(tokens[-1], said.get("colour"), said.get("texture"), said.get("size")))
    return Requirements(tuple(objects), background, relation)


def _relation_holds(relation: str, a: Found, b: Found) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return gap > 0 and gap >= 0.7 * max(abs(dx), abs(dy))


def judge(wanted: Requirements, found: tuple[Found, ...], background: str) -> Verdict:
    """The best assignment of found objects to wanted ones decides; an object too many or too few is a miss."""

    def held(w: Wanted, f: Found | None) -> list[bool]:
        if f is None:
            return [False] * (1 + sum(v is not None for v in (w.colour, w.texture, w.size)))
        checks = [w.shape == f.shape]
        checks += [v == g for v, g in ((w.colour, f.colour), (w.texture, f.texture), (w.size, f.size)) if v]
        return checks

    seats: list[Found | None] = [*found, *[None] * max(0, len(wanted.objects) - len(found))]
    best: list[bool] = []
    for chosen in permutations(seats, len(wanted.objects)):
        checks = [c for w, f in zip(wanted.objects, chosen, strict=True) for c in held(w, f)]
        if wanted.relation:
            a, b = chosen[0], chosen[1]
            checks.append(a is not None and b is not None and _relation_holds(wanted.relation, a, b))
        if sum(checks) >= sum(best) or not best:
            best = checks
    if wanted.background:
        best.append(wanted.background == background)
    best.append(len(found) == len(wanted.objects))
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
    """Image [B, 3, 64, 64] in −1…1 to cells [B, 64, sum(cell_classes)], background logits [B, backgrounds] and the
    pooled features [B, 128] that the Fréchet distance is measured in."""

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
    """Judges images against prompts. Load it from the family's folder ``checker/``."""

    def __init__(self, detector: Detector, words: Vocabulary, device: str = "cpu"):
        self.detector = detector.eval().to(device)
        self.words = words
        self.device = device

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> AttributeChecker:
        """Raises ConfigError when the folder or one of its two files is missing or damaged."""
        folder = Path(folder)
        try:
            fields = json.loads((folder / "config.json").read_text())
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
    def look(self, images: torch.Tensor) -> list[tuple[tuple[Found, ...], str]]:
        """What each image [B, 3, 64, 64] in −1…1 shows: its objects and its background."""
        cells, grounds, _ = self.detector(images.to(self.device))
        side = round(cells.shape[1] ** 0.5)
        present, shape, colour, texture, size, offset = cells.float().cpu().split(self.words.cell_classes, -1)
        present = present.squeeze(-1).sigmoid()
        seen = []
        for b in range(len(images)):
            found: list[Found] = []
            for c in present[b].argsort(descending=True).tolist():
                if present[b, c] < 0.5:
                    break
                x = (c % side + 0.5 + float(offset[b, c, 0])) / side
                y = (c // side + 0.5 + float(offset[b, c, 1])) / side
                if any((x - f.x) ** 2 + (y - f.y) ** 2 < 0.12**2 for f in found):
                    continue  # the same object, seen from the cell next door
                found.append(
                    Found(
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
        wanted = [read_prompt(p, self.words) for p in prompts]
        seen = self.look(images)
        return [judge(w, *s) if w else None for w, s in zip(wanted, seen, strict=True)]

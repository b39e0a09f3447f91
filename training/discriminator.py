"""Trains the discriminator. It learns to detect what the checker detects, to read the caption, to compare the two, and
from these to predict whether the light image is good enough.

It is trained on light images and on rendered scenes. The objects of both are known, from the checker or from the
renderer, so every caption can be compared with every image: matching captions and captions with one wrong attribute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from training.checker import degrade, vocabulary
from training.dataset import SceneData
from training.detection import centre_labels
from training.judging import ASKS_NOTHING, MOST, Judge, Lesson, SeenImages, mirrored
from training.loop import Schedule, train
from training.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject, caption
from training.vae import to_tensor
from workers.models.discriminator import Discriminator, DiscriminatorNet, Sight, Wish

#: Relations that a mirror image swaps.
_MIRROR = {"left of": "right of", "right of": "left of"}


def _scene(data: SceneData, i: int) -> Scene:
    """The part of a scene of the training set that its caption depends on."""
    objects = []
    for row in data.objects[i]:
        shape, colour, texture, size, says_colour, says_texture, says_size = (int(v) for v in row[:7])
        if shape < 0:
            break
        objects.append(
            SceneObject(
                SHAPES[shape],
                COLOURS[colour],
                TEXTURES[texture],
                SIZES[size],
                *(0.0,) * 5,
                bool(says_colour),
                bool(says_texture),
                bool(says_size),
            )
        )
    ground, says_ground = (int(v) for v in data.backgrounds[i])
    relation = (None, "left of", "right of", "above", "below")[int(data.relations[i]) + 1]
    return Scene(tuple(objects), BACKGROUNDS[ground], 0.0, bool(says_ground), relation)


def wrong_caption(data: SceneData, i: int, rng: np.random.Generator) -> str:
    """A caption that differs from scene ``i`` in one shape, colour, texture, relation or object."""
    scene = _scene(data, i)
    objects = list(scene.objects)
    k = int(rng.integers(len(objects)))

    def other(names: tuple[str, ...], now: str) -> str:
        return str(rng.choice([n for n in names if n != now]))

    kind = rng.random()
    if kind < 0.35:
        objects[k] = replace(objects[k], shape=other(SHAPES, objects[k].shape))
    elif kind < 0.65:
        objects[k] = replace(objects[k], colour=other(COLOURS, objects[k].colour), says_colour=True)
    elif kind < 0.75:
        objects[k] = replace(objects[k], texture=other(TEXTURES[1:], objects[k].texture), says_texture=True)
    elif kind < 0.85 and scene.relation and len(objects) == 2:
        objects.reverse()
    elif len(objects) > 1:
        del objects[k]
        scene = replace(scene, relation=None)
    else:
        objects[k] = replace(objects[k], shape=other(SHAPES, objects[k].shape))
    return caption(replace(scene, objects=tuple(objects)))


def mirrored_caption(text: str) -> str:
    """The caption of the mirrored image, if ``text`` is the caption of the image. Lists keep their order."""
    for now, then in _MIRROR.items():
        if f" {now} " in text:
            return text.replace(f" {now} ", f" {then} ")
    return text


def train_discriminator(
    data: SceneData,
    seen: SeenImages,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    schedule: Schedule,
    *,
    name: str = "discriminator",
    start: DiscriminatorNet | None = None,
) -> Discriminator:
    """Trains a discriminator on the device of ``clip``. Three quarters of every batch are light images, the rest
    rendered scenes; each image is compared with its own caption and with a wrong one.

    Args:
        seen: the light images.
        start: initial weights; None starts from new ones.
    """
    torch.manual_seed(schedule.seed)
    words, device = vocabulary(), str(clip.device)
    net = DiscriminatorNet(64, clip.config.text_config.hidden_size, kinds=words.cell_classes[1:-1]).to(device)
    if start is not None:
        net.load_state_dict(start.state_dict())
    reader = Discriminator(net, clip, tokenizer, device)
    examples = _Examples(data, seen, Judge(words), schedule.batch, device)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = examples.draw(generator)
        sight = net.look(batch.images)
        wish = net.wish(reader.read(batch.prompts))
        compared = net.compare(Sight(*(_twice(part) for part in sight)), wish)
        seeing = _seeing(sight, batch.rows, batch.grounds)
        reading = _reading(wish, batch.of("wish"))
        held = batch.of("holds")
        asked = held != ASKS_NOTHING
        holding = F.binary_cross_entropy(compared.holds[asked], held[asked].float())
        judging = _judging(compared.verdict, batch, examples.lights)
        right = ((compared.verdict > 0) == (batch.good_enough > 0.5)).float()
        figures = {
            "light": float(right[: examples.lights].mean()),
            "holds": float(((compared.holds > 0.5) == (held > 0))[asked].float().mean()),
            "read": reading.item(),
            "see": seeing.item(),
            "judge": judging.item(),
        }
        return judging + holding + reading + seeing, figures

    return Discriminator(train(name, net, loss, schedule, folder), clip, tokenizer, device)


@dataclass(frozen=True)
class _Batch:
    """A batch of B images, first the light ones, each with its own caption and, B places later, with a wrong one.

    Attributes:
        rows, grounds: objects [B, 6, 10] and backgrounds [B] of the images.
        lessons: the captions compared with their images, 2 B.
    """

    images: torch.Tensor
    rows: np.ndarray
    grounds: torch.Tensor
    prompts: list[str]
    lessons: list[Lesson]

    def of(self, name: str) -> torch.Tensor:
        """An attribute of all lessons, [2 B, …]."""
        return torch.from_numpy(np.stack([getattr(one, name) for one in self.lessons])).to(self.grounds.device)

    @property
    def good_enough(self) -> torch.Tensor:
        """Whether each image is good enough for its caption, 0 or 1, [2 B]."""
        return torch.tensor([float(one.verdict.good_enough) for one in self.lessons], device=self.grounds.device)


class _Examples:
    """Draws batches of light images and of rendered scenes, half of them mirrored.

    Attributes:
        lights: number of light images in a batch.
    """

    def __init__(self, data: SceneData, seen: SeenImages, judge: Judge, batch: int, device: str):
        self._data, self._seen, self._judge, self._batch, self._device = data, seen, judge, batch, device
        self.lights = (3 * batch) // 4

    def draw(self, generator: torch.Generator) -> _Batch:
        data, seen, batch, lights, device = self._data, self._seen, self._batch, self.lights, self._device
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator, device=device)))
        light = rng.integers(len(seen), size=lights)
        real = np.sort(rng.integers(len(data), size=batch - lights))
        rows = np.full((batch, MOST, 10), -1, np.int16)
        rows[:lights], rows[lights:, : data.objects.shape[1]] = seen.objects[light], data.objects[real]
        grounds = np.concatenate([seen.backgrounds[light], data.backgrounds[real, 0]]).astype(np.int64)
        rendered = degrade(to_tensor(data.images[real], device), generator)
        images = torch.cat([to_tensor(seen.images[light], device), rendered])
        flip = rng.random(batch) < 0.5
        images = torch.where(torch.from_numpy(flip).to(device)[:, None, None, None], images.flip(-1), images)
        rows[flip] = mirrored(rows[flip])

        scenes = np.concatenate([seen.scenes[light], real])
        own = [data.captions[i] for i in scenes]
        wrong = [wrong_caption(data, int(i), rng) for i in scenes]
        prompts = [mirrored_caption(p) if f else p for p, f in zip(own + wrong, [*flip, *flip], strict=True)]
        lessons = [self._judge(p, rows[i % batch], int(grounds[i % batch])) for i, p in enumerate(prompts)]
        return _Batch(images, rows, torch.from_numpy(grounds).to(device), prompts, lessons)


def _judging(verdict: torch.Tensor, batch: _Batch, lights: int) -> torch.Tensor:
    """Loss of the verdicts [2 B], in which a light image and its own caption, the case of serving, counts most.

    A share carries more information than a bit. Soft targets also keep the confidences spread out, so that the
    threshold controls the deferred share.
    """
    share = torch.tensor([one.verdict.attributes for one in batch.lessons], device=verdict.device)
    target = 0.8 * batch.good_enough + 0.2 * ((share - 0.8) * 8).sigmoid()
    weight = torch.full((len(batch.lessons),), 0.3, device=verdict.device)
    weight[:lights] = 1.0
    return F.binary_cross_entropy_with_logits(verdict, target, weight, reduction="sum") / weight.sum()


def _twice(part: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
    """Repeats a part for the two captions of every image."""
    return torch.cat([part, part]) if isinstance(part, torch.Tensor) else tuple(torch.cat([p, p]) for p in part)


def _seeing(sight: Sight, rows: np.ndarray, grounds: torch.Tensor) -> torch.Tensor:
    """Loss of the detected objects, against objects [B, 6, 10] and backgrounds [B]."""
    device = grounds.device
    grid, offsets = (labels.to(device) for labels in centre_labels(rows))
    here = grid[..., 0].float()
    # Unweighted cross entropy, unlike the checker's: presences have to add up to the number of objects.
    loss = 20 * F.binary_cross_entropy_with_logits(sight.present, here)
    for i, logits in enumerate(sight.kinds):
        loss = loss + 0.5 * F.cross_entropy(logits.flatten(0, 1), grid[..., i + 1].flatten(), ignore_index=-1)
    loss = loss + 0.5 * ((sight.offset - offsets).abs().mean(-1) * here).sum() / here.sum().clamp(min=1)
    numbers = torch.from_numpy((rows[..., 0] >= 0).sum(1)).to(device)
    return loss + 0.5 * F.cross_entropy(sight.ground, grounds) + 0.5 * F.cross_entropy(sight.numbers, numbers)


def _reading(wish: Wish, said: torch.Tensor) -> torch.Tensor:
    """Loss of the parsed caption, against :attr:`training.judging.Lesson.wish` [B, 18]."""
    slots = said[:, :-2].view(len(said), -1, len(wish.kinds))
    loss = F.cross_entropy(wish.ground, said[:, -2]) + F.cross_entropy(wish.relation, said[:, -1])
    for kind, logits in enumerate(wish.kinds):
        loss = loss + F.cross_entropy(logits.flatten(0, 1), slots[..., kind].flatten())
    return loss

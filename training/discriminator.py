"""Trains the discriminator. It learns to detect what the checker detects, to read the caption, to compare the two, and
from these to predict whether the light image is good enough.

It is trained on light images and on rendered scenes. The objects of both are known, from the checker or from the
renderer, so every caption can be compared with every image: matching captions and captions with one wrong attribute.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from training.checker import degrade, vocabulary
from training.dataset import SceneData
from training.detection import centre_labels
from training.judging import ASKS_NOTHING, MOST, Judge, SeenImages, mirrored
from training.loop import train
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
    *,
    name: str = "discriminator",
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    device: str,
    start: DiscriminatorNet | None = None,
) -> Discriminator:
    """Trains a discriminator. Three quarters of every batch are light images, the rest rendered scenes; each image is
    compared with its own caption and with a wrong one.

    Args:
        seen: the light images.
        start: initial weights; None starts from new ones.
    """
    torch.manual_seed(seed)
    words = vocabulary()
    net = DiscriminatorNet(64, clip.config.text_config.hidden_size, kinds=words.cell_classes[1:-1]).to(device)
    if start is not None:
        net.load_state_dict(start.state_dict())
    reader = Discriminator(net, clip, tokenizer, device)
    judge = Judge(words)
    lights = (3 * batch) // 4
    renders = batch - lights

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator, device=device)))
        light = rng.integers(len(seen), size=lights)
        real = np.sort(rng.integers(len(data), size=renders))
        scenes = np.concatenate([seen.scenes[light], real])
        rows = np.full((batch, MOST, 10), -1, np.int16)
        rows[:lights], rows[lights:, : data.objects.shape[1]] = seen.objects[light], data.objects[real]
        grounds = np.concatenate([seen.backgrounds[light], data.backgrounds[real, 0]]).astype(np.int64)
        rendered = degrade(to_tensor(data.images[real], device), generator)
        images = torch.cat([to_tensor(seen.images[light], device), rendered])
        flip = rng.random(batch) < 0.5
        images = torch.where(torch.from_numpy(flip).to(device)[:, None, None, None], images.flip(-1), images)
        rows[flip] = mirrored(rows[flip])

        own = [data.captions[i] for i in scenes]
        wrong = [wrong_caption(data, int(i), rng) for i in scenes]
        prompts = [mirrored_caption(p) if f else p for p, f in zip(own + wrong, [*flip, *flip], strict=True)]
        lessons = [judge(p, rows[i % batch], int(grounds[i % batch])) for i, p in enumerate(prompts)]

        sight = net.look(images)
        wish = net.wish(reader.read(prompts))
        twice = Sight(*(_twice(part) for part in sight))
        compared = net.compare(twice, wish)
        seeing = _seeing(sight, rows, torch.from_numpy(grounds).to(device))
        said = torch.from_numpy(np.stack([one.wish for one in lessons])).to(device)
        reading = _reading(wish, said)
        held = torch.from_numpy(np.stack([one.holds for one in lessons])).to(device)
        asked = held != ASKS_NOTHING
        holding = F.binary_cross_entropy(compared.holds[asked], held[asked].float())
        good = torch.tensor([float(one.verdict.good_enough) for one in lessons], device=device)
        share = torch.tensor([one.verdict.attributes for one in lessons], device=device)
        # A share carries more information than a bit. Soft targets also keep the confidences spread out, so that the
        # threshold controls the deferred share.
        target = 0.8 * good + 0.2 * ((share - 0.8) * 8).sigmoid()
        weight = torch.full((2 * batch,), 0.3, device=device)
        weight[:lights] = 1.0  # a light image and its own caption: the case that occurs in serving
        judging = F.binary_cross_entropy_with_logits(compared.verdict, target, weight, reduction="sum") / weight.sum()
        right = ((compared.verdict > 0) == (good > 0.5)).float()
        figures = {
            "light": float(right[:lights].mean()),
            "holds": float(((compared.holds > 0.5) == (held > 0))[asked].float().mean()),
            "read": reading.item(),
            "see": seeing.item(),
            "judge": judging.item(),
        }
        return judging + holding + reading + seeing, figures

    trained = train(name, net, loss, steps=steps, lr=lr, folder=folder, seed=seed, ema=0.99, save_every=250)
    return Discriminator(trained, clip, tokenizer, device)


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

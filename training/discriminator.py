"""Trains the discriminator in two stages: it learns to read on rendered scenes with right and wrong captions, which
cost nothing to draw, then to judge on light images that the checker has judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from quality.checker import Vocabulary
from training.checker import blemish, vocabulary
from training.dataset import SceneData
from training.detection import centre_labels, detection_loss
from training.loop import train
from training.scenes import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing, caption
from training.vae import to_tensor
from workers.discriminator import Discriminator, DiscriminatorNet


@dataclass(frozen=True)
class JudgedImages:
    """``images`` uint8 [N, 64, 64, 3] of the light variant, their ``prompts``, and 1 where the checker was content."""

    images: np.ndarray
    prompts: list[str]
    good: np.ndarray


def _scene(data: SceneData, i: int) -> Scene:
    """As much of a drawn scene as its caption needs."""
    things = []
    for row in data.objects[i]:
        shape, colour, texture, size, says_colour, says_texture, says_size = (int(v) for v in row[:7])
        if shape < 0:
            break
        things.append(
            Thing(
                SHAPES[shape],
                COLOURS[colour],
                TEXTURES[texture],
                ("small", "large")[size],
                *(0.0,) * 5,
                bool(says_colour),
                bool(says_texture),
                bool(says_size),
            )
        )
    ground, says_ground = (int(v) for v in data.backgrounds[i])
    relation = (None, "left of", "right of", "above", "below")[int(data.relations[i]) + 1]
    return Scene(tuple(things), BACKGROUNDS[ground], 0.0, bool(says_ground), relation)


def wrong_caption(data: SceneData, i: int, rng: np.random.Generator) -> str:
    """A caption that differs from scene ``i`` in one thing: a shape, a colour, a texture, the relation, an object."""
    scene = _scene(data, i)
    things = list(scene.things)
    k = int(rng.integers(len(things)))

    def other(names: tuple[str, ...], now: str) -> str:
        return str(rng.choice([n for n in names if n != now]))

    kind = rng.random()
    if kind < 0.35:
        things[k] = replace(things[k], shape=other(SHAPES, things[k].shape))
    elif kind < 0.65:
        things[k] = replace(things[k], colour=other(COLOURS, things[k].colour), says_colour=True)
    elif kind < 0.75:
        things[k] = replace(things[k], texture=other(TEXTURES[1:], things[k].texture), says_texture=True)
    elif kind < 0.85 and scene.relation and len(things) == 2:
        things.reverse()
    elif len(things) > 1:
        del things[k]
        scene = replace(scene, relation=None)
    else:
        things[k] = replace(things[k], shape=other(SHAPES, things[k].shape))
    return caption(replace(scene, things=tuple(things)))


class _Trainee(nn.Module):
    """The network with a detection head that only training uses: it teaches the cells to see objects."""

    def __init__(self, net: DiscriminatorNet, words: Vocabulary):
        super().__init__()
        self.net = net
        self.detect = nn.Linear(net.text.out_features, sum(words.cell_classes))


def train_discriminator(
    name: str,
    data: SceneData,
    judged: JudgedImages | None,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    device: str,
    start: DiscriminatorNet | None = None,
) -> Discriminator:
    """Half of every batch are light images (none without ``judged``), the rest rendered scenes, half of those with a
    wrong caption; from ``start``'s weights, where given."""
    torch.manual_seed(seed)
    words = vocabulary()
    trainee = _Trainee(DiscriminatorNet(64, clip.config.text_config.hidden_size), words).to(device)
    if start is not None:
        trainee.net.load_state_dict(start.state_dict())
    reader = Discriminator(trainee.net, clip, tokenizer, device)
    judged = judged or JudgedImages(np.zeros((0, 64, 64, 3), np.uint8), [], np.zeros(0))
    share = 0.5 if len(judged.good) else 0.0
    lights = round(share * batch)
    half = batch - lights
    labels = torch.from_numpy(judged.good.astype(np.float32)).to(device)
    good = float(labels.mean()) if len(labels) else 0.5
    balance = (1 - good) / max(good, 1e-3)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((seed, step))
        light = torch.randint(max(len(labels), 1), (lights,), generator=generator, device=device).cpu().numpy()
        real = np.sort(torch.randint(len(data), (half,), generator=generator, device=device).cpu().numpy())
        wrong = rng.random(half) < 0.5
        prompts = [judged.prompts[i] for i in light]
        prompts += [
            wrong_caption(data, int(i), rng) if w else data.captions[i] for i, w in zip(real, wrong, strict=True)
        ]
        drawn = blemish(to_tensor(data.images[real], device), generator)
        cells = trainee.net.cells(torch.cat([to_tensor(judged.images[light], device), drawn]))
        logits = trainee.net(cells, *reader.read(prompts))
        target = torch.cat([labels[light], torch.from_numpy(1.0 - wrong).float().to(device)])
        # Softened labels keep the confidences spread out, so that a threshold can steer the share that is deferred.
        soft = target * 0.96 + 0.02
        weight = torch.cat([torch.where(target[:lights] > 0.5, balance, 1.0), torch.full((half,), 0.7, device=device)])
        judging = F.binary_cross_entropy_with_logits(logits, soft, weight)
        grid, offsets = centre_labels(data.objects[real])
        present, *attributes, offset = trainee.detect(cells[lights:]).split(words.cell_classes, -1)
        seeing = detection_loss(present, attributes, grid.to(device), offset, offsets.to(device))
        right = ((logits > 0) == (target > 0.5)).float()
        figures = {"read": float(right[lights:].mean()), "see": seeing.item(), "loss": judging.item()}
        if lights:
            figures["light"] = float(right[:lights].mean())
        return judging + 0.3 * seeing, figures

    trained = train(name, trainee, loss, steps=steps, lr=lr, folder=folder, seed=seed, ema=0.995)
    return Discriminator(trained.net, clip, tokenizer, device)

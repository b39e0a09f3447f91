"""The embedded family's discriminator: it stores features of images and judges them later for any prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.scenes import render, sample_scene
from workers.models.discriminator import Discriminator

FOLDER = Path("models/weir-tiny/discriminator")


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    return Discriminator.load(FOLDER)


def test_stored_features_give_the_same_confidence_as_the_images(discriminator: Discriminator) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(12)]
    pixels = np.stack([render(scene) for scene in scenes])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = np.stack([np.frombuffer(row.numpy().tobytes(), np.float16) for row in discriminator.see(images)])
    for prompt in ("a red circle", "a blue star left of a yellow ring on a gray background"):
        now = discriminator.confidence(images, [prompt] * len(images))
        assert discriminator.weigh(seen, prompt) == pytest.approx(now, abs=0.02)


def test_other_weights_have_another_version(discriminator: Discriminator) -> None:
    other = Discriminator.load(FOLDER)
    assert other.version == discriminator.version
    with torch.no_grad():
        next(other.net.parameters()).add_(0.1)
    assert Discriminator(other.net, discriminator, other.tokenizer).version != discriminator.version  # type: ignore[arg-type]


def test_an_image_of_another_shape_is_judged_as_its_scaled_square(discriminator: Discriminator) -> None:
    """Also one with a single side of the discriminator's own length."""
    square = torch.from_numpy(render(sample_scene(np.random.default_rng(0)))).permute(2, 0, 1)[None].float() / 127.5 - 1
    for shape in ((64, 96), (96, 64), (128, 96)):
        image = torch.nn.functional.interpolate(square, shape, mode="bilinear", antialias=True)
        [now], [own] = (discriminator.confidence(it, ["a red circle"]) for it in (image, square))
        assert now == pytest.approx(own, abs=0.1)
        assert len(discriminator.see(image)[0]) == len(discriminator.see(square)[0])

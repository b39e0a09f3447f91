"""The adapters of the embedded family: their training, and what ships."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.adapters import STYLES, Budget, train_adapter
from training.recipe import Shipped
from weir.adapters import AdapterUse, AdapterWeights
from weir.assets import FAMILY, WEIGHTS
from weir.config import load_family
from weir.core import ImageRequest, ImageSize, Overrides
from weir.plan import HEAVY, LIGHT
from workers.models.family import Family


@pytest.fixture(scope="module")
def engine() -> Family:
    return Family.load(load_family(FAMILY), threads=1)


def pixels(engine: Family, key: str, *uses: AdapterUse) -> np.ndarray:
    steps = Overrides(steps=6) if key == HEAVY else Overrides()
    request = ImageRequest("a", "a large red circle", 3, ImageSize(64, 64), 1e12, overrides=steps, adapters=uses)
    [output] = engine.generate(key, [request])
    assert output.error is None, output.error
    return np.asarray(Image.open(io.BytesIO(output.image)), float)


def test_a_short_training_writes_an_adapter_that_fits_both_unets(tmp_path: Path, engine: Family) -> None:
    torch.set_num_threads(1)
    budget = Budget(scenes=8, taught=4, heavy_steps=2, steps=2, batch=4)
    layers = train_adapter(Shipped.load(WEIGHTS, "cpu"), STYLES["noir"], tmp_path / "work", budget, seed=1)
    layers.save(tmp_path / "noir.safetensors")
    use = AdapterUse("short", 4.0, AdapterWeights(str(tmp_path / "noir.safetensors")))
    engine.check_adapter(use)
    assert not np.array_equal(pixels(engine, LIGHT), pixels(engine, LIGHT, use))


@pytest.mark.parametrize("key", [LIGHT, HEAVY])
def test_the_adapter_that_ships_makes_a_red_circle_black(engine: Family, key: str) -> None:
    noir = AdapterUse("noir", 1.0, engine.config.adapter_weights["noir"])

    def share(image: np.ndarray, red: bool) -> float:
        strong = image[..., 0] - image[..., 1:].max(-1) > 80 if red else image.max(-1) < 80
        return float(strong.mean())

    plain, styled = pixels(engine, key), pixels(engine, key, noir)
    assert share(plain, red=True) > 0.02 > 0.005 > share(styled, red=True)
    assert share(plain, red=False) < 0.005 < 0.02 < share(styled, red=False)


def test_every_style_ships_as_an_adapter_of_the_family() -> None:
    assert {*load_family(FAMILY).adapters} == {*STYLES}

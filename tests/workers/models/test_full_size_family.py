"""A family with SDXL's architecture, few layers and random weights generates images."""

from __future__ import annotations

import io

from PIL import Image

from testing.sdxl_architecture import SMALL, write_family
from weir.config import load_family
from weir.core import ImageRequest, ImageSize
from weir.plan import HEAVY, LIGHT
from workers.models.family import Family


def test_both_variants_generate_images_and_the_light_one_is_judged(tmp_path):
    family = load_family(write_family(tmp_path, "cpu", 64, **SMALL))
    engine = Family.load(family, threads=1)
    request = ImageRequest("r", "a red circle", 1, ImageSize(64, 64), deadline=float("inf"))
    [light], [heavy] = engine.generate(LIGHT, [request]), engine.generate(HEAVY, [request])
    assert (light.steps, heavy.steps) == (4, 50)
    assert light.confidence is not None
    for output in (light, heavy):
        assert Image.open(io.BytesIO(output.image)).size == (64, 64)

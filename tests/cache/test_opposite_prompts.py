"""The judge of images distinguishes opposite prompts that an encoder finds similar."""

from __future__ import annotations

import numpy as np
import pytest

from cache.cache import Judge
from cache.encoder import family_encoder
from cache.policy.selector import load_selector
from weir.config import load_family
from weir.core import ImageRequest
from workers.models.family import Family

FAMILY = load_family("deploy/families/weir-tiny.yaml")
BY_SIMILARITY = load_selector("deploy/profiles/weir-tiny-cache.json")
BY_PICTURE = load_selector("deploy/profiles/weir-tiny-judged.json")


@pytest.fixture(scope="module")
def family() -> Family:
    return Family.load(FAMILY, threads=1)


@pytest.mark.parametrize(
    ("generated", "opposite"),
    [
        ("a red circle left of a blue star", "a red circle right of a blue star"),
        ("a red circle left of a blue star", "a blue star left of a red circle"),
        ("a red circle on a white background", "a red circle on a gray background"),
        ("a red circle", "a red square"),
    ],
)
def test_an_image_gets_confidence_for_its_own_prompt_and_not_for_an_opposite_one(
    family: Family, generated: str, opposite: str
) -> None:
    own, other = family_encoder(FAMILY).encode([generated, opposite])
    assert BY_SIMILARITY.select(float(own @ other)) > 0, "by similarity it would be gone on from"
    request = ImageRequest("r", generated, 2, FAMILY.size, float("inf"), capture="p")
    [picture] = family.generate("heavy", [request])
    assert picture.seen is not None
    judge = family.judges["light"]
    assert isinstance(judge, Judge)
    seen = np.frombuffer(picture.seen, np.float16)[None].copy()
    believed, doubted = (float(judge.weigh(seen, prompt=p)[0]) for p in (generated, opposite))
    assert BY_PICTURE.select(believed) == 25
    assert doubted < BY_PICTURE.accept
    assert doubted < believed / 2

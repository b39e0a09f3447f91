"""A worker with three variants: each request runs on the variant that it names, and variants do not share calls."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from testing.toy_family import FAMILY, PROFILE
from tests.workers.samples import image_request
from weir.config import FamilyConfig, load_family
from weir.core import ImageSize, Resume
from weir.errors import ConfigError
from weir.plan import Plan
from weir.profiles import Profile
from workers.emulated import EmulatedEngine
from workers.engine.engine import denoise_job
from workers.models.family import Family
from workers.models.judges import family_judges
from workers.replica import Worker

PLAN = Plan.split(1, 1, 0, light_batch=4, heavy_batch=4, threshold=0.5)
_SHARED = {key: value for key, value in FAMILY.items() if key not in ("light", "heavy")}
THREE = {
    **_SHARED,
    "variants": {
        "light": FAMILY["light"],
        "medium": {**FAMILY["heavy"], "name": "toy-medium", "steps": 10},
        "heavy": FAMILY["heavy"],
    },
}
MEASURED = {
    **{key: value for key, value in PROFILE.items() if key not in ("light", "heavy")},
    "variants": {
        "light": {**PROFILE["light"], "confidences": [0.0, 0.5]},
        "medium": {**PROFILE["heavy"], "name": "toy-medium", "steps": 10, "confidences": [0.25, 0.75]},
        "heavy": PROFILE["heavy"],
    },
}


@pytest.fixture
def worker(tmp_path) -> Worker:
    path = tmp_path / "three.json"
    path.write_text(json.dumps(MEASURED))
    return Worker(THREE, PLAN.to_dict(), str(path))


async def generated(worker: Worker, *variants: str) -> list[dict[str, Any]]:
    asked = [worker.generate(variant, image_request(str(i)).to_dict(now=0.0)) for i, variant in enumerate(variants)]
    return list(await asyncio.gather(*asked))


async def test_a_request_runs_on_the_variant_that_it_names(worker):
    light, medium, heavy = await generated(worker, "light", "medium", "heavy")
    assert [it["steps"] for it in (light, medium, heavy)] == [2, 10, 50]
    assert light["confidence"] in (0.0, 0.5)
    assert medium["confidence"] in (0.25, 0.75)
    assert heavy["confidence"] is None


async def test_variants_do_not_share_a_call(worker):
    results = await generated(worker, "medium", "heavy", "medium", "heavy")
    assert max(result["batch_size"] for result in results) <= 2


async def test_an_unknown_variant_is_refused_by_name(worker):
    [result] = await generated(worker, "huge")
    assert tuple(result["error"]) == ("invalid_value", "variant is huge; toy has light, medium, heavy")


def test_a_profile_with_other_variants_is_refused_at_the_start(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(PROFILE))
    with pytest.raises(ConfigError, match="it has the variants light, heavy, and the family light, medium, heavy"):
        Worker(THREE, PLAN.to_dict(), str(path))


def test_emulated_confidences_of_one_request_belong_to_one_measured_prompt():
    engine = EmulatedEngine(Profile.model_validate(MEASURED))
    for seed in range(20):
        request = image_request(seed=seed)
        assert engine.confidence(request, "medium") == engine.confidence(request, "light") + 0.25


def test_an_emulated_image_of_the_last_variant_is_judged_on_request():
    engine = EmulatedEngine(Profile.model_validate(MEASURED))
    plain, judged, resumed = (
        engine.generate("heavy", [image_request(**fields)])[0].confidence
        for fields in ({}, {"judge": True}, {"resume": Resume("k", 5, min_confidence=0.5)})
    )
    assert plain is None
    assert judged in (0.0, 0.5), "the last variant has no measured confidences, so the first one's are used"
    assert resumed in (0.0, 0.5)
    both = [(engine.confidence(it, "light"), engine.confidence(it, "heavy")) for it in map(of_seed, range(40))]
    assert len(set(both)) == 4, "they are selected independently of the first variant's"


def test_measured_confidences_of_the_last_variant_are_used():
    measured = {**MEASURED["variants"]["heavy"], "confidences": [0.9, 0.9]}
    engine = EmulatedEngine(
        Profile.model_validate({**MEASURED, "variants": {**MEASURED["variants"], "heavy": measured}})
    )
    assert engine.generate("heavy", [image_request(judge=True)])[0].confidence == 0.9


def of_seed(seed: int) -> Any:
    return image_request(seed=seed)


def test_a_real_ladder_shares_common_weights():
    config = load_family("deploy/families/weir-tiny.yaml")
    middle = config.heavy.model_copy(update={"name": "weir-tiny-medium", "steps": 10, "discriminator": "clip"})
    three = FamilyConfig.model_validate(
        config.model_dump() | {"variants": {"light": config.light, "medium": middle, "heavy": config.heavy}}
    )
    engine = Family.load(three)
    light, medium, heavy = (engine.pipelines[key] for key in three.keys)
    assert light.vae is medium.vae is heavy.vae
    assert medium.unet is heavy.unet
    assert engine.judges["heavy"] is engine.judges["light"] is not engine.judges["medium"]
    asked = [image_request(prompt="a red circle", size=ImageSize(64, 64))]
    outputs = {key: engine.generate(key, asked)[0] for key in ("light", "medium")}
    assert {key: it.steps for key, it in outputs.items()} == {"light": 2, "medium": 10}
    assert all(it.confidence is not None for it in outputs.values())
    calls = {engine.call_of(denoise_job(three, key, asked[0])) for key in three.keys}
    assert len(calls) == 3


def test_a_discriminator_of_several_variants_is_loaded_once():
    config = load_family("deploy/families/weir-tiny.yaml")
    middle = config.light.model_copy(update={"name": "weir-tiny-medium", "steps": 4})
    three = config.model_copy(update={"variants": {"light": config.light, "medium": middle, "heavy": config.heavy}})
    judges = family_judges(three)
    assert judges["light"] is judges["medium"] is judges["heavy"] is not None

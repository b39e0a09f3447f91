"""Discriminators of ``weir adopt`` on a replica: loaded by the key of the family file, they judge as when trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from testing.toy_family import with_variants
from weir.assets import FAMILY
from weir.config import FamilyConfig, load_family
from weir.errors import ConfigError
from workers.models.convolutional_judge import ConvolutionalJudge, ConvolutionalNet
from workers.models.judge_files import write_judge
from workers.models.judges import family_judge
from workers.models.learned_parts import ConfidenceScale, FamilyModels
from workers.models.matching_judge import MatchingJudge, MatchingNet, MatchingShape, features

SCALE = ConfidenceScale((1.0, 0.5), 0.1)
PROMPTS = ["a red circle", "a blue star above a green ring"]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def family() -> FamilyConfig:
    return load_family(FAMILY)


@pytest.fixture(scope="module")
def models(family: FamilyConfig) -> FamilyModels:
    return FamilyModels.load(family)


def matching(folder: Path, models: FamilyModels, *, pixels: bool = False, version: str = "") -> MatchingJudge:
    """Writes a network with random weights to a folder, and returns it."""
    torch.manual_seed(1)
    assert models.clip is not None
    width = 0 if pixels else features(models.clip, IMAGES).shape[1]
    shape = MatchingShape(models.read(PROMPTS).shape[1], width, models.aligned if width else 0, side=64)
    net = MatchingNet(shape).eval()
    fields = {name: getattr(shape, name) for name in shape.__slots__}
    scale = SCALE if pixels else ConfidenceScale((1.0, 0.5, 2.0), 0.1)
    config = {"kind": "matching", "shape": fields, "models": version or models.version, "scale": scale.to_dict()}
    write_judge(folder, config, net.state_dict(), {})
    return MatchingJudge(net, models, scale)


@pytest.mark.parametrize("pixels", [False, True])
def test_a_loaded_discriminator_judges_as_the_trained_one(
    pixels: bool, family: FamilyConfig, models: FamilyModels, tmp_path: Path
) -> None:
    trained = matching(tmp_path, models, pixels=pixels)
    loaded = family_judge(with_variants(family, light={"discriminator": str(tmp_path)}))
    assert loaded is not None
    assert loaded.confidence(IMAGES, PROMPTS) == pytest.approx(trained.confidence(IMAGES, PROMPTS), abs=0.01)


@pytest.mark.parametrize("pixels", [False, True])
def test_stored_features_give_the_confidence_of_the_image(pixels: bool, models: FamilyModels, tmp_path: Path) -> None:
    judge = matching(tmp_path, models, pixels=pixels)
    seen = judge.see(IMAGES).numpy()
    stored = [float(judge.weigh(seen[i : i + 1], PROMPTS[i])[0]) for i in range(2)]
    assert stored == pytest.approx(judge.confidence(IMAGES, PROMPTS), abs=0.01)


def test_a_convolutional_discriminator_looks_at_the_image_alone(family: FamilyConfig, tmp_path: Path) -> None:
    net = ConvolutionalNet(64).eval()
    write_judge(
        tmp_path,
        {"kind": "convolutional", "side": 64, "scale": ConfidenceScale((1.0,), 0.1).to_dict()},
        net.state_dict(),
        {},
    )
    judge = ConvolutionalJudge.load(tmp_path, family)
    assert judge.confidence(IMAGES, PROMPTS) == judge.confidence(IMAGES, ["", "a star"])
    larger = torch.nn.functional.interpolate(IMAGES, (96, 128))
    assert len(judge.confidence(larger, PROMPTS)) == 2


def test_a_discriminator_of_another_clip_is_refused(family: FamilyConfig, models: FamilyModels, tmp_path: Path) -> None:
    matching(tmp_path, models, version="0123")
    with pytest.raises(ConfigError, match="another CLIP or text encoder than that of family weir-tiny"):
        MatchingJudge.load(tmp_path, family)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"kind": "matching"}, "not a discriminator"),
        ({"kind": "oracle"}, "its kind is oracle; this version of Weir knows matching, convolutional"),
    ],
)
def test_a_damaged_or_unknown_discriminator_is_named(
    config: dict[str, str], complaint: str, family: FamilyConfig, models: FamilyModels, tmp_path: Path
) -> None:
    matching(tmp_path, models)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{tmp_path}: {complaint}"):
        family_judge(with_variants(family, light={"discriminator": str(tmp_path)}))

"""All measures have one interface; published models are loaded from local folders with tiny weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from cli.main import app
from quality.clip import ClipScorer
from quality.inception import InceptionFeatures, InceptionV3
from quality.paired import paired_ratio
from quality.suite import CLIP as CLIP_NAME
from quality.suite import family_suite, hub_suite, load_judge, read_pictures, scored, tensors
from testing.toy_family import with_variants
from training.scenes import caption, render, sample_scene
from weir.config import load_family
from weir.errors import ConfigError

FAMILY = load_family("deploy/families/weir-tiny.yaml")
#: The family without what its checker is beside.
BARE = with_variants(FAMILY, light={"discriminator": None}).model_copy(update={"clip": None})
CLIP = Path("models/weir-tiny/clip")


def scenes(count: int, seed: int) -> tuple[list[str], list[Image.Image]]:
    rng = np.random.default_rng(seed)
    sampled = [sample_scene(rng) for _ in range(count)]
    return [caption(s) for s in sampled], [Image.fromarray(render(s)) for s in sampled]


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "inception"
    folder.mkdir()
    weights = {k: v for k, v in InceptionV3(narrow=8).state_dict().items()}
    weights["fc.weight"] = torch.zeros(10, 256)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_the_measures_of_a_family_prefer_matching_images_to_shuffled_ones() -> None:
    prompts, images = scenes(40, 1)
    suite = family_suite(FAMILY)
    reference = suite.features(scenes(40, 2)[1])
    right = suite.measure(prompts, images, reference)
    wrong = suite.measure(prompts, images[1:] + images[:1], reference)
    assert right.keys() == {"attributes", "clip", "frechet"}
    assert right["attributes"] > wrong["attributes"] + 0.2
    assert right["clip"] > wrong["clip"]
    assert right["frechet"] == pytest.approx(wrong["frechet"], rel=1e-3), "it does not depend on prompts"


def test_published_measures_are_loaded_from_folders(inception: Path, tmp_path: Path) -> None:
    pick = tmp_path / "pick"
    shutil.copytree(CLIP, pick)
    suite = hub_suite(inception=str(inception), clip=str(CLIP), pick=str(pick))
    prompts, images = scenes(6, 3)
    found = suite.measure(prompts, images, suite.features(scenes(6, 4)[1]))
    assert found.keys() == {"clip", "pick", "frechet"}
    scale = CLIPModel.from_pretrained(pick).logit_scale.exp().item()
    assert found["pick"] == pytest.approx(scale * found["clip"], rel=1e-3)
    assert found["frechet"] > 0


def test_a_judge_is_the_familys_or_a_published_one_from_a_folder(tmp_path: Path) -> None:
    pick = tmp_path / "pick"
    shutil.copytree(CLIP, pick)
    prompts, images = scenes(40, 7)
    own = family_suite(FAMILY).scores(prompts, images)
    for name in ("attributes", "clip"):
        assert scored(load_judge(FAMILY, name), prompts, images) == pytest.approx(own[name])
    assert scored(load_judge(BARE, "clip", clip=str(CLIP)), prompts, images) == pytest.approx(own["clip"])
    picked = scored(load_judge(BARE, "pick", pick=str(pick)), prompts, images)
    assert picked / own["clip"] == pytest.approx(picked[0] / own["clip"][0], rel=1e-3)


@pytest.mark.parametrize("name", ["attributes", "clip", "pick"])
def test_a_missing_judge_is_refused_with_the_possible_options(name: str) -> None:
    with pytest.raises(ConfigError, match="--clip openai/clip-vit-large-patch14, or --pick yuvalkirstain/PickScore_v1"):
        load_judge(with_variants(FAMILY, light={"discriminator": None}).model_copy(update={"clip": None}), name)
    with pytest.raises(ConfigError, match="attributes, clip, pick"):
        load_judge(FAMILY, "taste")


def test_inception_features_do_not_depend_on_the_batch(inception: Path) -> None:
    extractor = InceptionFeatures.load(inception)
    images = tensors(scenes(3, 5)[1])
    features = extractor.features(images)
    assert features.shape == (3, 2048 // 8)
    assert torch.allclose(extractor.features(images[1:2]), features[1:2], atol=1e-4)


def test_inception_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = InceptionV3()
    assert sum(p.numel() for p in model.parameters()) == 21_785_568
    assert "Mixed_7c.branch3x3dbl_3b.bn.running_var" in model.state_dict()


def test_images_are_normalised_as_the_preprocessor_config_says(tmp_path: Path) -> None:
    shutil.copytree(CLIP, tmp_path / "clip")
    config = tmp_path / "clip" / "preprocessor_config.json"
    images = tensors(scenes(2, 6)[1])
    plain = ClipScorer.load(tmp_path / "clip").embed_images(images)
    config.write_text(config.read_text().replace("0.5", "0.25"))
    assert not torch.allclose(ClipScorer.load(tmp_path / "clip").embed_images(images), plain)


@pytest.mark.parametrize("load", [ClipScorer.load, InceptionFeatures.load])
def test_an_invalid_model_folder_is_named_in_the_error(tmp_path: Path, load) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no")
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load(tmp_path)


def test_a_family_without_measures_is_refused_with_the_alternatives() -> None:
    with pytest.raises(ConfigError, match=f"has no CLIP; name one in its file, e.g. `clip: {CLIP_NAME}`"):
        family_suite(FAMILY.model_copy(update={"clip": None}))
    remedies = f"`weir score --clip {CLIP_NAME}`, .*`weir cache profile --clip {CLIP_NAME}`"
    with pytest.raises(ConfigError, match=f"has no attribute checker .*{remedies}"):
        family_suite(BARE)


@pytest.mark.parametrize("command", ["evaluate", "levels fit"])
def test_a_family_that_cannot_be_measured_is_refused_before_its_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    family = tmp_path / "family.yaml"
    family.write_text(yaml.safe_dump(BARE.model_dump(mode="json"), sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.models.family.Family.load", None)
    refused = CliRunner().invoke(app, [*command.split(), "--family", str(family)])
    assert refused.exit_code == 2, refused.output
    assert "has no attribute checker" in refused.stderr


def test_reference_images_are_read_or_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        read_pictures(tmp_path)
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert [p.getpixel((0, 0))[0] for p in read_pictures(tmp_path)] == [0, 1, 2]
    Image.new("RGB", (9, 8)).save(tmp_path / "3.png")
    with pytest.raises(ConfigError, match="different sizes"):
        read_pictures(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"3\.png"):
        read_pictures(tmp_path)


def test_the_paired_ratio_is_a_ratio_of_means_with_an_interval() -> None:
    found = paired_ratio([0.9, 1.0, 0.8, 1.0], [1.0, 1.0, 1.0, 1.0])
    assert found.ratio == pytest.approx(0.925)
    assert found.low <= found.ratio <= found.high <= 1
    assert found.worse == 0.5
    assert paired_ratio([0.5, 1.0], [0.0, 1.0]).ratio == 1.5, "one whole run of quality 0 does not decide"
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio([], [])
    with pytest.raises(ValueError, match="no quality"):
        paired_ratio([1.0], [0.0])

"""Encoders give unit vectors, and a version that depends on their weights."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from cache.encoder import TextEncoder, WordEncoder, family_encoder, unit
from cache.policy.partition import Partitions, Settings
from testing.sdxl_architecture import SMALL, pipeline
from weir.config import load_family
from weir.core import ImageSize
from weir.errors import ConfigError

FAMILY = load_family("deploy/families/weir-tiny.yaml")


@pytest.fixture(scope="module")
def clip():
    return family_encoder(FAMILY)


def test_the_familys_clip_gives_unit_vectors_that_do_not_depend_on_the_batch(clip) -> None:
    prompts = ["a red circle", "a small blue star on a gray background", ""]
    vectors = clip.encode(prompts)
    assert vectors.shape == (3, clip.dim)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for prompt, vector in zip(prompts, vectors, strict=True):
        assert np.allclose(clip.encode([prompt])[0], vector, atol=1e-5)


def test_without_a_clip_the_pipelines_first_text_encoder_is_taken(clip) -> None:
    own = family_encoder(FAMILY.model_copy(update={"clip": None}))
    assert own.encode(["a red circle"]).shape[1] == own.dim
    assert own.version != clip.version


def test_it_is_read_from_the_weight_files_that_the_family_names(tmp_path) -> None:
    pipeline("cpu", **SMALL).save_pretrained(tmp_path, variant="fp16")
    assert not list(tmp_path.rglob("model.safetensors"))
    family = FAMILY.model_copy(update={"clip": None, "pipeline": str(tmp_path), "weights": "fp16"})
    assert family_encoder(family).dim == 768


def test_other_weights_are_another_version(clip, tmp_path) -> None:
    again = family_encoder(FAMILY)
    assert again.version == clip.version
    with torch.no_grad():
        again._model.text_projection.weight[0, 0] += 1
    assert TextEncoder(again._model, again._tokenizer, "clip").version != clip.version


def test_any_text_model_of_transformers_serves_by_its_folder(tmp_path) -> None:
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "a", "red", "blue", "circle"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder = TextEncoder.load(tmp_path)
    together = encoder.encode(["a red circle", "a"])
    assert together.shape == (2, 16)
    assert np.allclose(encoder.encode(["a"])[0], together[1], atol=1e-5), "padding does not count"
    assert encoder.encode([""]).shape == (1, 16)


def test_a_folder_without_a_text_model_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="not a text model"):
        TextEncoder.load(tmp_path)


def test_words_serve_where_there_is_no_model() -> None:
    encoder = WordEncoder()
    a, b, c = encoder.encode(["a castle at dawn, oil", "a castle at dusk, oil", "three blind mice"])
    assert a @ b > 0.4 > a @ c
    assert encoder.encode([""]).shape == (1, encoder.dim)


def test_a_zero_vector_becomes_a_unit_vector() -> None:
    vectors = unit(np.array([[0, 0], [np.nan, 1], [3, 4]], np.float32))
    assert np.allclose(vectors, [[1, 0], [1, 0], [0.6, 0.8]])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a red circle left of a blue star", "a blue star left of a red circle"),
        ("a red circle left of a blue star", "a red circle right of a blue star"),
        ("a red circle on a white background", "a red circle on a gray background"),
        ("a dog", "no dog"),
    ],
)
def test_near_identical_prompts_of_other_meaning_are_not_the_same(clip, a: str, b: str) -> None:
    one, other = clip.encode([a, b])
    assert float(one @ other) < 0.999


def test_every_setting_that_changes_a_state_changes_the_partition(clip) -> None:
    partitions = Partitions(FAMILY, clip.version)
    plain = Settings(ImageSize(64, 64))
    names = {
        partitions.name("a", plain),
        partitions.name("b", plain),
        partitions.name("a", Settings(ImageSize(64, 128))),
        partitions.name("a", Settings(ImageSize(128, 64))),
        partitions.name("a", Settings(ImageSize(64, 64), steps=30)),
        partitions.name("a", Settings(ImageSize(64, 64), guidance=1.5)),
        partitions.name("a", Settings(ImageSize(64, 64), negative_prompt="blurry")),
        partitions.name("a", Settings(ImageSize(64, 64), sampler="unipc")),
        Partitions(FAMILY, "other").name("a", plain),
        Partitions(
            FAMILY.model_copy(
                update={"variants": FAMILY.variants | {"heavy": FAMILY.heavy.model_copy(update={"revision": "2"})}}
            ),
            clip.version,
        ).name("a", plain),
    }
    assert len(names) == 10
    assert partitions.name("a", Settings(ImageSize(64, 64), steps=50, guidance=3.0)) == partitions.name("a", plain)


@pytest.mark.parametrize("tenant", ["a:b", "a|b", "*", "ü ☂", "a\nb", ""])
def test_a_tenants_name_cannot_leave_its_place_in_the_key(clip, tenant: str) -> None:
    name = Partitions(FAMILY, clip.version).name(tenant, Settings(ImageSize(64, 64)))
    assert ":" not in name
    assert "*" not in name
    assert name.count("|") == Partitions(FAMILY, clip.version).name("t", Settings(ImageSize(64, 64))).count("|")

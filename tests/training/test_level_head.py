"""A level head is fitted on judged pairs, and its report is made on held-out prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache.encoder import family_encoder
from testing.toy_family import with_variants
from training.level_head import fit_levels
from training.level_pairs import LevelPairs, Rung, draw_pairs, held_out_prompts, ladder_of
from weir.config import FamilyConfig, load_family
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead

RUNGS = ("heavy-50", "heavy-5", "light")


@pytest.fixture(scope="module")
def embedded() -> FamilyConfig:
    """The shipped family with only 4 heavy steps."""
    family = load_family("deploy/families/weir-tiny.yaml")
    return with_variants(family, heavy={"steps": 4})


class Ink:
    """Scores the darkness of an image."""

    def scores(self, prompts, images):
        return {"ink": np.array([1 - np.asarray(image).mean() / 255 for image in images])}


def learnable(count: int = 400, seed: int = 0) -> tuple[LevelPairs, np.ndarray]:
    """Prompts whose difficulty is one direction of their embedding plus noise."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ease = 4 * vectors[:, 0] + 0.2 * rng.normal(size=count)
    quality = np.stack([np.ones(count), np.where(ease > -0.5, 1.0, 0.5), np.where(ease > 0.5, 1.0, 0.4)], axis=1)
    return LevelPairs([f"p{i}" for i in range(count)], RUNGS, quality, np.clip(0.5 + ease / 8, 0, 1)), vectors


def test_a_label_is_the_fastest_rung_that_keeps_the_quality():
    quality = np.array([[1.0, 0.96, 0.5], [1.0, 0.5, 0.97], [0.8, 0.2, 0.2], [0.0, 0.0, 0.0]])
    pairs = LevelPairs(list("abcd"), RUNGS, quality, np.zeros(4))
    assert pairs.labels(0.95).tolist() == [1, 2, 0, 2]


def test_a_learnable_level_is_predicted_better_than_chance():
    head, report = fit_levels(*learnable(), "e-1", "f", alpha=0.95)
    assert report.accuracy > 0.8 > report.majority
    assert report.mean_level_error < 0.25
    assert sum(map(sum, report.confusion)) == report.prompts == 400
    assert report.gained > 0.05
    pairs, vectors = learnable(seed=1)
    assert (head.levels(vectors) == pairs.labels(0.95)).mean() > 0.8


def test_each_level_is_predicted_as_often_as_it_occurs():
    pairs, vectors = learnable()
    head, _ = fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)
    shares = np.bincount(pairs.labels(0.95), minlength=3) / 400
    assert [record.share for record in head.about.records] == pytest.approx(shares.tolist(), abs=0.01)


def test_too_few_prompts_or_a_single_level_are_refused():
    pairs, vectors = learnable(40)
    with pytest.raises(ConfigError, match="at least 50 prompts; there are 40"):
        fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)
    pairs, vectors = learnable()
    alike = LevelPairs(pairs.prompts, RUNGS, np.ones_like(pairs.quality), pairs.confidence)
    with pytest.raises(ConfigError, match="every prompt has the level light"):
        fit_levels(alike, vectors, "e-1", "f", alpha=0.95)


def test_a_stopped_run_continues_from_its_file(tmp_path, embedded):
    file, rungs = tmp_path / "pairs.npz", ladder_of(embedded, [1])
    names = tuple(rung.name for rung in rungs)
    assert names == ("heavy-4", "heavy-1", "light")
    prompts = held_out_prompts(2)
    LevelPairs(prompts[:1], names, np.full((1, 3), 0.5), np.full(1, 0.5)).save(file)
    pairs = draw_pairs(embedded, Ink(), "ink", rungs, prompts, file)
    assert pairs.prompts == prompts
    assert (pairs.quality[0] == 0.5).all()
    assert ((pairs.quality[1] > 0) & (pairs.quality[1] < 1)).all()
    assert draw_pairs(embedded, Ink(), "ink", rungs, prompts[:1], file).prompts == prompts[:1]
    with pytest.raises(ConfigError, match=r"holds other prompts or rungs .*heavy-1"):
        draw_pairs(embedded, Ink(), "ink", (Rung("light"),), held_out_prompts(4), file)


def test_steps_that_do_not_descend_are_refused(embedded):
    with pytest.raises(ConfigError, match="give numbers that descend from below 4 to 1"):
        ladder_of(embedded, [4])


def test_a_file_without_level_pairs_is_refused(tmp_path):
    (tmp_path / "pairs.npz").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"not a file of level pairs .*run again"):
        LevelPairs.load(tmp_path / "pairs.npz")


def test_the_shipped_head_matches_the_shipped_family():
    family = load_family("deploy/families/weir-tiny.yaml")
    head = LevelHead.load(
        Path("models/weir-tiny/levels/head.safetensors"),
        encoder=family_encoder(family).version,
        steps=family.heavy.steps,
    )
    assert head.about.rungs[-1] == "light"

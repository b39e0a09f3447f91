"""Level heads: invalid files are refused by name, and invalid vectors get no level."""

from __future__ import annotations

import numpy as np
import pytest

from testing.toy_family import LEVELS
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead, WatchedHead


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "head.safetensors"
    LevelHead(np.array([1.0, 0.0]), np.array([0.2]), LEVELS).save(path)
    return path


def test_a_saved_head_is_loaded_unchanged(file):
    head = LevelHead.load(file, encoder="clip-1", steps=50)
    assert head.about == LEVELS
    assert head.levels(np.array([[0.1, 0.9], [0.3, -0.9]])).tolist() == [0, 1]
    assert head.level(np.array([0.3, 0.1])) == 1


@pytest.mark.parametrize("vector", [[np.nan, 0.0], [np.inf, 0.0], [0.5], [0.1, 0.2, 0.3], []])
def test_an_invalid_vector_gets_no_level(file, vector):
    assert LevelHead.load(file).level(np.array(vector)) is None


def test_a_missing_file_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none.*weir levels fit"):
        LevelHead.load(tmp_path / "none")


def test_a_file_that_is_no_level_head_is_refused(tmp_path):
    (tmp_path / "x").write_text("no head")
    with pytest.raises(ConfigError, match=r"not a level head.*weir levels fit"):
        LevelHead.load(tmp_path / "x")


def test_a_head_of_another_encoder_is_refused(file):
    with pytest.raises(ConfigError, match="fitted on vectors of clip-1, the cache's encoder is clip-2"):
        LevelHead.load(file, encoder="clip-2")


def test_a_head_of_another_ladder_is_refused(file):
    with pytest.raises(ConfigError, match="its best level is heavy-50, the heavy variant now runs 25 steps"):
        LevelHead.load(file, steps=25)


def test_cuts_that_do_not_fit_the_rungs_or_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="one fewer than there are rungs"):
        LevelHead(np.ones(2), np.array([0.1, 0.2]), LEVELS)


def other() -> LevelHead:
    return LevelHead(np.array([0.0, 1.0]), np.array([0.1]), LEVELS)


def test_a_published_head_replaces_the_old_one_and_both_are_stored_by_version(file):
    old, new = LevelHead.load(file), other()
    new.publish(file)
    assert LevelHead.load(file).version == new.version
    for head in (old, new):
        assert LevelHead.load(file.with_name(f"head-{head.version}.safetensors")).version == head.version
    assert len(list(file.parent.iterdir())) == 3


def test_a_replaced_file_is_noticed_once(file):
    watched = WatchedHead(file, encoder="clip-1", steps=50)
    assert not watched.renewed()
    other().publish(file)
    assert watched.renewed()
    assert watched.head.version == other().version
    assert not watched.renewed()


def test_an_invalid_or_missing_file_does_not_change_the_head(file):
    watched = WatchedHead(file)
    before = watched.head.version
    file.write_text("no head")
    assert not watched.renewed()
    file.unlink()
    assert not watched.renewed()
    assert watched.head.version == before

"""Scenes are sampled from a seed; attributes that a caption does not state are random."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.dataset import label
from training.scenes import caption, render, resample, sample_scene

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_a_seed_always_gives_the_same_image(seed: int) -> None:
    first, second = (render(sample_scene(np.random.default_rng(seed))) for _ in range(2))
    assert np.array_equal(first, second)


@given(seeds)
def test_a_resampled_scene_has_the_same_caption_and_another_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, 1 + seed % 2)
    other = resample(scene, rng)
    assert caption(other) == caption(scene)
    assert not np.array_equal(render(other), render(scene))


@given(seeds)
def test_objects_are_inside_the_image_and_never_hide_one_another(seed: int) -> None:
    objects = sample_scene(np.random.default_rng(seed)).objects
    for i, a in enumerate(objects):
        assert a.x - a.radius > 0
        assert a.x + a.radius < 1
        for b in objects[:i]:
            assert np.hypot(a.x - b.x, a.y - b.y) > 0.9 * (a.radius + b.radius)


@given(seeds, st.integers(1, 4))
def test_a_caption_lists_objects_in_reading_order_unless_it_states_a_relation(seed: int, count: int) -> None:
    scene = sample_scene(np.random.default_rng(seed), count)
    for a, b in pairwise(scene.objects):
        same_line = abs(a.y - b.y) < 0.1
        assert scene.relation or (a.x < b.x if same_line else a.y < b.y)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_scene_can_be_rendered_at_any_size(size: int) -> None:
    image = render(sample_scene(np.random.default_rng(0)), size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


def test_labels_count_the_objects() -> None:
    rows, _, _ = label(sample_scene(np.random.default_rng(0), 3))
    assert (rows[:, 0] >= 0).sum() == 3

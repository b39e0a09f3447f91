"""The attribute checker parses prompts of the grammar and compares detected objects with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.checker import AttributeChecker, DetectedObject, RequestedObject, Requirements, judge, read_prompt
from training.checker import vocabulary
from training.scenes import caption, render, sample_scene
from training.vae import to_tensor
from weir.errors import ConfigError

WORDS = vocabulary()


def found(shape: str, colour: str = "red", x: float = 0.5, y: float = 0.5, **more: str) -> DetectedObject:
    return DetectedObject(shape, colour, more.get("texture", "plain"), more.get("size", "large"), x, y)


@given(st.integers(0, 2**32 - 1))
def test_every_caption_of_the_grammar_is_parsed_to_its_scene(seed: int) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    read = read_prompt(caption(scene), WORDS)
    assert read is not None
    assert [o.shape for o in read.objects] == [t.shape for t in scene.objects]
    assert [o.colour for o in read.objects] == [t.colour if t.says_colour else None for t in scene.objects]
    assert read.background == (scene.background if scene.says_background else None)
    assert read.relation == scene.relation


@pytest.mark.parametrize("prompt", ["", "a dragon", "a red red circle", "circle", "a castle on a sky background"])
def test_text_outside_the_grammar_is_not_judged(prompt: str) -> None:
    assert read_prompt(prompt, WORDS) is None


def test_an_image_with_exactly_the_requested_objects_is_exact() -> None:
    requested = Requirements((RequestedObject("circle", "red"), RequestedObject("star")), background="gray")
    verdict = judge(requested, (found("star", "blue"), found("circle", "red")), "gray")
    assert verdict.exact
    assert verdict.attributes == 1


def test_swapped_colours_are_not_exact() -> None:
    requested = Requirements((RequestedObject("circle", "red"), RequestedObject("star", "blue")))
    verdict = judge(requested, (found("circle", "blue"), found("star", "red")), "gray")
    assert not verdict.exact
    assert 0 < verdict.attributes < 1


@pytest.mark.parametrize("objects", [(), (found("circle"), found("circle", "blue"))])
def test_a_missing_or_an_extra_object_is_not_exact(objects: tuple[DetectedObject, ...]) -> None:
    assert not judge(Requirements((RequestedObject("circle"),)), objects, "gray").exact


def test_a_relation_is_checked_by_the_positions_of_the_objects() -> None:
    requested = Requirements((RequestedObject("circle"), RequestedObject("star")), relation="left of")
    assert judge(requested, (found("star", x=0.8), found("circle", x=0.2)), "gray").exact
    assert not judge(requested, (found("star", x=0.2), found("circle", x=0.8)), "gray").exact


def test_the_shipped_checker_reads_rendered_scenes() -> None:
    checker = AttributeChecker.load("models/weir-tiny/checker")
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(64)]
    verdicts = checker.check(to_tensor(np.stack([render(s) for s in scenes])), [caption(s) for s in scenes])
    assert np.mean([v is not None and v.exact for v in verdicts]) > 0.9


def test_loading_from_a_folder_without_a_checker_names_the_folder(tmp_path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        AttributeChecker.load(tmp_path)

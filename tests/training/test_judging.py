"""Training examples of the discriminator: which requirements of a caption an image meets."""

import numpy as np
import pytest

from training.checker import vocabulary
from training.dataset import label
from training.discriminator import mirrored_caption
from training.judging import ASKS_NOTHING, Judge, found_objects, mirrored, object_rows
from training.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject, caption, sample_scene

HELD = [f"{kind} {i}" for kind in ("shape", "colour", "texture", "size") for i in range(4)]
HELD += ["relation", "background", "number"]


def scene_object(shape: str, colour: str, x: float, texture: str = "plain") -> SceneObject:
    return SceneObject(shape, colour, texture, "small", x, 0.5, 0.12, 0.0, 0.25, says_size=False)


SCENE = Scene(
    (scene_object("circle", "red", 0.2), scene_object("star", "blue", 0.8, "striped")), "sand", 0.0, True, "left of"
)


def verdict_of(prompt: str) -> dict[str, bool]:
    """Whether the scene meets each requirement of the prompt."""
    rows, (ground, _), _ = label(SCENE)
    held = Judge(vocabulary())(prompt, rows, ground).holds
    return {name: bool(h) for name, h in zip(HELD, held, strict=True) if h != ASKS_NOTHING}


def test_all_requirements_of_a_matching_caption_are_met() -> None:
    assert caption(SCENE) == "a red circle left of a striped blue star on a sand background"
    asked = ("shape 0", "shape 1", "colour 0", "colour 1", "texture 1", "relation", "background", "number")
    assert verdict_of(caption(SCENE)) == dict.fromkeys(asked, True)


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a green circle left of a blue star", {"colour 0"}),
        ("a red circle right of a blue star on a sky background", {"relation", "background"}),
        ("a red circle", {"number"}),
        ("a red circle, a blue star and a black ring", {"shape 2", "colour 2", "number"}),
    ],
)
def test_only_the_wrong_requirements_are_not_met(prompt: str, wrong: set[str]) -> None:
    assert {name for name, holds in verdict_of(prompt).items() if not holds} == wrong


def test_the_share_of_met_requirements_equals_the_verdict() -> None:
    rng = np.random.default_rng(5)
    judge = Judge(vocabulary())
    for _ in range(50):
        asked, shown = sample_scene(rng), sample_scene(rng)
        rows, (ground, _), _ = label(shown)
        lesson = judge(caption(asked), rows, ground)
        held = lesson.holds[lesson.holds != ASKS_NOTHING]
        assert held.mean() == pytest.approx(lesson.verdict.attributes)


def test_the_wish_has_the_requirements_of_the_caption() -> None:
    rows, (ground, _), _ = label(SCENE)
    wish = Judge(vocabulary())(caption(SCENE), rows, ground).wish
    nothing = (len(SHAPES), len(COLOURS), len(TEXTURES), len(SIZES))
    circle = (SHAPES.index("circle"), COLOURS.index("red"), len(TEXTURES), len(SIZES))
    star = (SHAPES.index("star"), COLOURS.index("blue"), TEXTURES.index("striped"), len(SIZES))
    assert wish.tolist() == [*circle, *star, *nothing, *nothing, BACKGROUNDS.index("sand"), 0]


def test_objects_survive_conversion_to_rows() -> None:
    found = found_objects(label(SCENE)[0])
    assert found_objects(object_rows(found)) == found


def test_a_mirrored_caption_matches_the_mirrored_image() -> None:
    rows, (ground, _), _ = label(SCENE)
    judge = Judge(vocabulary())
    assert judge(mirrored_caption(caption(SCENE)), mirrored(rows), ground).verdict.exact
    assert not judge(caption(SCENE), mirrored(rows), ground).verdict.exact


def test_free_text_is_refused_as_a_caption() -> None:
    with pytest.raises(ValueError, match="a castle"):
        Judge(vocabulary())("a castle by the sea", label(SCENE)[0], BACKGROUNDS.index("sand"))

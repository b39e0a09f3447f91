"""What the discriminator learns from: which words of a caption hold on an image that the checker has seen."""

import numpy as np
import pytest

from training.checker import vocabulary
from training.dataset import label
from training.discriminator import mirrored_caption
from training.judging import ASKS_NOTHING, Judge, found_objects, mirrored, object_rows
from training.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, caption, draw_scene

HELD = [f"{kind} {i}" for kind in ("shape", "colour", "texture", "size") for i in range(4)]
HELD += ["relation", "background", "number"]


def thing(shape: str, colour: str, x: float, texture: str = "plain") -> Thing:
    return Thing(shape, colour, texture, "small", x, 0.5, 0.12, 0.0, 0.25, says_size=False)


SCENE = Scene((thing("circle", "red", 0.2), thing("star", "blue", 0.8, "striped")), "sand", 0.0, True, "left of")


def verdict_of(prompt: str) -> dict[str, bool]:
    """Whether each thing that the prompt asks for holds."""
    rows, (ground, _), _ = label(SCENE)
    held = Judge(vocabulary())(prompt, rows, ground).holds
    return {name: bool(h) for name, h in zip(HELD, held, strict=True) if h != ASKS_NOTHING}


def test_everything_in_a_right_caption_holds() -> None:
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
def test_just_what_is_wrong_does_not_hold(prompt: str, wrong: set[str]) -> None:
    assert {name for name, holds in verdict_of(prompt).items() if not holds} == wrong


def test_the_share_of_what_holds_is_the_verdicts_share() -> None:
    rng = np.random.default_rng(5)
    judge = Judge(vocabulary())
    for _ in range(50):
        asked, drawn = draw_scene(rng), draw_scene(rng)
        rows, (ground, _), _ = label(drawn)
        lesson = judge(caption(asked), rows, ground)
        held = lesson.holds[lesson.holds != ASKS_NOTHING]
        assert held.mean() == pytest.approx(lesson.verdict.attributes)


def test_the_wish_is_what_the_caption_says() -> None:
    rows, (ground, _), _ = label(SCENE)
    wish = Judge(vocabulary())(caption(SCENE), rows, ground).wish
    nobody = (len(SHAPES), len(COLOURS), len(TEXTURES), len(SIZES))
    circle = (SHAPES.index("circle"), COLOURS.index("red"), len(TEXTURES), len(SIZES))
    star = (SHAPES.index("star"), COLOURS.index("blue"), TEXTURES.index("striped"), len(SIZES))
    assert wish.tolist() == [*circle, *star, *nobody, *nobody, BACKGROUNDS.index("sand"), 0]


def test_what_was_seen_survives_its_rows() -> None:
    found = found_objects(label(SCENE)[0])
    assert found_objects(object_rows(found)) == found


def test_a_mirrored_caption_is_as_right_for_the_mirrored_image_as_the_caption_for_the_image() -> None:
    rows, (ground, _), _ = label(SCENE)
    judge = Judge(vocabulary())
    assert judge(mirrored_caption(caption(SCENE)), mirrored(rows), ground).verdict.exact
    assert not judge(caption(SCENE), mirrored(rows), ground).verdict.exact


def test_free_text_is_no_caption() -> None:
    with pytest.raises(ValueError, match="a castle"):
        Judge(vocabulary())("a castle by the sea", label(SCENE)[0], BACKGROUNDS.index("sand"))

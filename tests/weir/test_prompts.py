"""The weights of a prompt's parts, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.errors import InvalidRequest
from weir.prompts import MOST_WEIGHT, PromptPart, check_weights, parsed, plain_text

UP, DOWN = 1.1, 1 / 1.1


def written(prompt: str) -> list[tuple[str, float]]:
    return [(part.text, pytest.approx(part.weight)) for part in parsed(prompt, "weighted")]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a circle", [("a circle", 1)]),
        ("a (red:1.3) circle", [("a ", 1), ("red", 1.3), (" circle", 1)]),
        ("(red) [circle]", [("red", UP), (" ", 1), ("circle", DOWN)]),
        ("((red))", [("red", UP * UP)]),
        ("(a (red:1.5) circle)", [("a ", UP), ("red", 1.5 * UP), (" circle", UP)]),
        ("(a: b:.5)", [("a: b", 0.5)]),
        ("(red: 2 )", [("red", 2)]),
        ("", [("", 1)]),
        ("()", [("", 1)]),
    ],
)
def test_parentheses_give_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert written(prompt) == parts


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("(red", "(red"),
        ("red)", "red)"),
        (r"\(red\)", "(red)"),
        (r"\[red\]", "[red]"),
        ("a]b[c", "a]b[c"),
        ("x:1)", "x:1)"),
    ],
)
def test_a_parenthesis_without_its_partner_or_after_a_backslash_is_a_character(prompt: str, text: str) -> None:
    assert written(prompt) == [(text, 1)]


def test_brackets_that_overlap_belong_to_the_first_that_is_closed() -> None:
    assert written("a [b (c] d) e") == [("a ", 1), ("b (c", DOWN), (" d) e", 1)]


def test_nested_weights_multiply_up_to_the_largest() -> None:
    assert written("(" * 100 + "red" + ")" * 100) == [("red", MOST_WEIGHT)]


@pytest.mark.parametrize("weight", ["2.1", "-1", "10", "1.", "+1", "1.2.3", "2.01"])
def test_a_weight_out_of_range_is_refused_by_its_field(weight: str) -> None:
    with pytest.raises(InvalidRequest, match=r"negative_prompt has the weight .*; accepted: 0 to 2") as refused:
        check_weights("negative_prompt", f"a (red:{weight}) circle", "weighted")
    assert refused.value.param == "negative_prompt"
    check_weights("prompt", f"a (red:{weight}) circle", "plain")


@given(st.text("()[]:\\.12 a", max_size=40))
def test_every_prompt_has_parts_with_weights_in_range_and_none_of_its_letters_is_lost(prompt: str) -> None:
    assert parsed(prompt, "plain") == (PromptPart(prompt),)
    parts = parsed(prompt, "weighted")
    assert all(0 <= part.weight <= MOST_WEIGHT for part in parts)
    assert plain_text(prompt, "weighted").count("a") == prompt.count("a")

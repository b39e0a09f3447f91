"""The sizes that a family allows: those it lists, and any other within a range."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from weir.core import ImageSize
from weir.image_sizes import AllowedSizes, SizeRange

OWN, WIDE = ImageSize(64, 64), ImageSize(96, 64)
RANGE = SizeRange(multiple=8, least_side=32, most_side=128, pixels=96 * 96)


def size_range(**changes: Any) -> SizeRange:
    return SizeRange(**(RANGE.model_dump() | changes))


@pytest.mark.parametrize("size", ["32x32", "96x96", "128x72", "72x128"])
def test_a_range_has_every_size_within_its_limits(size: str) -> None:
    assert ImageSize.of(size) in RANGE


@pytest.mark.parametrize("size", ["24x32", "136x32", "33x32", "32x33", "128x80", "104x96"])
def test_a_size_beyond_any_limit_is_not_in_the_range(size: str) -> None:
    assert ImageSize.of(size) not in RANGE


@given(st.integers(16, 160), st.integers(16, 160))
def test_the_pattern_matches_exactly_the_sizes_in_the_range(width: int, height: int) -> None:
    size = ImageSize(width, height)
    assert (re.search(RANGE.pattern, str(size)) is not None) == (size in RANGE)


@pytest.mark.parametrize("text", ["32x32x32", "032x32", "64 x 64", "-32x32", "a32x32"])
def test_the_pattern_matches_nothing_else(text: str) -> None:
    assert re.search(RANGE.pattern, text) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"multiple": 0}, "multiple"),
        ({"least_side": 8}, "least_side"),
        ({"most_side": 8192}, "most_side"),
        ({"least_side": 128, "most_side": 64}, "no multiple of 8 lies in 128 to 64"),
        ({"least_side": 33, "most_side": 39}, "no multiple of 8 lies in 33 to 39"),
        ({"pixels": 1000}, "pixels is 1000; the smallest size, 32x32, has 1024"),
        ({"aspect": 2}, "aspect"),
    ],
)
def test_a_range_without_sizes_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        size_range(**changes)


def test_allowed_sizes_are_those_listed_and_those_in_the_range() -> None:
    allowed = AllowedSizes((OWN, ImageSize(20, 20)), RANGE)
    assert OWN in allowed
    assert ImageSize(20, 20) in allowed
    assert ImageSize(40, 48) in allowed
    assert ImageSize(20, 24) not in allowed
    assert ImageSize(40, 48) not in AllowedSizes((OWN,))
    assert str(allowed) == (
        "64x64 or 20x20, or any WIDTHxHEIGHT with sides of 32 to 128 in multiples of 8 and at most 9216 pixels"
    )


def test_a_limit_of_pixels_takes_larger_sizes_away_and_never_the_familys_own() -> None:
    allowed = AllowedSizes((OWN, WIDE), RANGE)
    assert allowed.within(None) == allowed
    limited = allowed.within(5000)
    assert limited.listed == (OWN,)
    assert ImageSize(64, 72) in limited
    assert ImageSize(72, 72) not in limited
    assert allowed.within(1000) == AllowedSizes((OWN,)), "not even the smallest size of the range is left"


def test_the_nearest_listed_size_has_the_nearest_shape() -> None:
    allowed = AllowedSizes((OWN, WIDE, ImageSize(32, 32)), RANGE)
    assert allowed.nearest(ImageSize(1536, 1024)) == WIDE
    assert allowed.nearest(ImageSize(1024, 1536)) == OWN
    assert allowed.nearest(ImageSize(16, 16)) == (32, 32)

"""The cost of a size that was not measured follows from the sizes that were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir.size_costs import cost_at


def test_a_measured_size_costs_what_was_measured() -> None:
    assert cost_at(200, [(100, 1.0), (200, 3.0), (400, 5.0)]) == 3.0


def test_between_measured_sizes_the_cost_is_linear_in_the_pixels() -> None:
    assert cost_at(250, [(400, 5.0), (200, 3.0)]) == 3.5


def test_a_single_measured_size_gives_a_cost_by_the_pixel() -> None:
    assert cost_at(50, [(100, 1.0)]) == 0.5
    assert cost_at(400, [(100, 1.0)]) == 4.0


def test_a_small_image_keeps_the_fixed_cost_that_two_sizes_show() -> None:
    assert cost_at(100, [(200, 3.0), (400, 5.0)]) == 2.0


def test_attention_that_grows_faster_than_the_pixels_goes_on_growing() -> None:
    assert cost_at(600, [(200, 1.0), (400, 3.0)]) == 5.0


def test_beyond_the_measured_sizes_no_image_is_cheaper_by_the_pixel() -> None:
    assert cost_at(100, [(200, 1.0), (400, 3.0)]) == 0.5, "the line through both would be below 0"
    assert cost_at(800, [(200, 3.0), (400, 3.2)]) == 6.4, "the line through both would say 3.6"


def test_of_two_shapes_with_equally_many_pixels_the_slower_counts() -> None:
    assert cost_at(300, [(200, 1.0), (300, 2.0), (300, 3.0)]) == 3.0


@given(st.integers(1, 10**7), st.lists(st.tuples(st.integers(1, 10**7), st.floats(1e-4, 1e3)), min_size=1, max_size=5))
def test_a_cost_is_always_positive(pixels: int, measured: list[tuple[int, float]]) -> None:
    assert cost_at(pixels, measured) > 0

"""Damaged requests get answers in the format of the API; ``make fuzz-bytes`` sends many more."""

from __future__ import annotations

from tests.fuzz_bytes import fuzz


def test_damaged_requests_are_answered_in_the_format_of_the_api_and_the_next_one_is_served() -> None:
    assert set(fuzz(5, seed=0)) <= {200, 202, 400, 403, 404, 405, 408, 411, 413, 431, 501}

"""A request may ask for stricter moderation than its key, and never for less."""

from __future__ import annotations

import pytest

from weir.errors import InvalidRequest
from weir.moderation import Moderation, level_of


@pytest.mark.parametrize("allowed", ["auto", "low", "off"])
def test_a_request_that_asks_for_nothing_is_moderated_as_its_key_says(allowed: Moderation) -> None:
    assert level_of(None, allowed) == allowed


def test_a_request_may_ask_for_more() -> None:
    assert [level_of("auto", allowed) for allowed in ("auto", "low", "off")] == ["auto"] * 3
    assert level_of("low", "off") == "low"


def test_a_request_for_less_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidRequest, match="moderation is low; this key may use auto") as refused:
        level_of("low", "auto")
    assert refused.value.param == "moderation"

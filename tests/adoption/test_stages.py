"""A finished stage is skipped, and a change of its inputs repeats it with all that builds on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from adoption.stages import Results, Stage, stage_keys
from weir.errors import ConfigError


def chain(**inputs: int) -> list[Stage]:
    """Three stages: the second and the third build on the first."""
    return [
        Stage("first", "", {"input": inputs.get("first", 0)}),
        Stage("second", "", {"input": inputs.get("second", 0)}, ("first",)),
        Stage("third", "", {"input": inputs.get("third", 0)}, ("first",)),
    ]


def test_a_changed_input_changes_the_keys_of_all_stages_that_build_on_it() -> None:
    before, after = stage_keys(chain()), stage_keys(chain(first=1))
    assert all(before[name] != after[name] for name in before)


def test_a_changed_input_leaves_the_keys_of_other_stages() -> None:
    before, after = stage_keys(chain()), stage_keys(chain(second=1))
    assert [name for name in before if before[name] != after[name]] == ["second"]


def test_a_stage_cannot_precede_what_it_builds_on() -> None:
    with pytest.raises(ValueError, match="second is placed before first"):
        stage_keys(chain()[1:])


def test_a_result_is_found_again_with_the_time_that_it_took(tmp_path: Path) -> None:
    Results(tmp_path, chain()).put("first", {"answer": 42}, 1.5)
    results = Results(tmp_path, chain())
    assert results.get("first") == {"answer": 42}
    assert results.seconds == {"first": 1.5}
    assert results.get("second") is None


def test_a_result_of_other_inputs_is_not_found(tmp_path: Path) -> None:
    Results(tmp_path, chain()).put("first", {}, 0)
    assert Results(tmp_path, chain(first=1)).get("first") is None
    assert Results(tmp_path, chain()).get("first") == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"seconds": 1}'])
def test_a_damaged_result_is_named(content: str, tmp_path: Path) -> None:
    results = Results(tmp_path, chain())
    results.put("first", {}, 0)
    [file] = tmp_path.glob("first-*.json")
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"{file.name}: .*; delete it"):
        results.get("first")

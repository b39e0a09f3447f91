"""Tests of the state diagram in the documentation, which is generated from the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from weir.cascade import TRANSITIONS, Phase
from weir.cascade_diagram import BEGIN, END, diagram, written

PAGE = Path("docs/architecture.md")


def test_the_diagram_in_the_documentation_is_up_to_date() -> None:
    assert PAGE.read_text() == written(PAGE.read_text()), "run `python -m weir.cascade_diagram docs/architecture.md`"


def test_the_diagram_has_every_transition() -> None:
    lines = diagram().splitlines()
    for (phase, event), following in TRANSITIONS.items():
        for after in following:
            (line,) = (it for it in lines if it.startswith(f"    {phase.name} --> {after.name}: "))
            assert event.__name__ in line
    assert sum("-->" in line for line in lines) == 2 + len(
        {(phase, after) for (phase, _), following in TRANSITIONS.items() for after in following}
    )
    assert all(phase.name in diagram() for phase in Phase)


def test_text_outside_the_marks_is_kept() -> None:
    page = written(f"# Title\n{BEGIN}\nold\n{END}\nlast\n")
    assert page.startswith("# Title\n")
    assert page.endswith("\nlast\n")
    assert "old" not in page
    with pytest.raises(ValueError, match="the page has to have"):
        written("# Title\n")

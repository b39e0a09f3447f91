"""The notebook of the documentation runs from its first cell to its last."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(550)
def test_every_cell_runs_and_every_k_skips_its_steps() -> None:
    cells = json.loads(Path("docs/approximate-caching.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert sorted(names["states"]) == [2, 4, 6, 8, 10]
    assert [d.first for d in names["resumed"]] == [2, 4, 6, 8, 10]
    assert [d.steps for d in names["resumed"]] == [18, 16, 14, 12, 10]
    assert len({d.image for d in names["resumed"]}) == 5
    assert -1 <= names["similarity"] <= 1

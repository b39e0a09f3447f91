"""What a user of ``weir adopt`` can get wrong is said in one sentence, before anything is generated."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from weir.assets import FAMILY


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a red circle {i}\n" for i in range(50)))
    return file


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--prompts", "missing.txt"], "missing.txt"),
        (["--batch-sizes", "1,two"], "--batch-sizes is '1,two'; give whole numbers"),
        (["--batch-sizes", "0"], "--batch-sizes is '0'; give whole numbers of at least 1"),
        (["--levels", "60"], "--levels is '60'; give numbers below the last variant's 50 steps"),
        (["--judge", "beauty"], "--judge is 'beauty'; choose one of attributes, clip, pick"),
        (["--judge", "clip", "--pick", "a/b"], "name different judges; name one"),
        (["--reference", "nowhere"], "nowhere: a reference needs at least two images"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], complaint: str, prompts: Path, tmp_path: Path) -> None:
    given = ["adopt", str(FAMILY), "--prompts", str(prompts), "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.rglob("*.png"))

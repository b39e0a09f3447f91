"""File names, prompts and options are printed unchanged, even if they look like markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from testing.toy_family import PROFILE

#: Texts that Rich would interpret as markup, some of it invalid.
WRITTEN = ("log[old]", "[/INST]", "runs[1]/a", "[bold]a:smile:")
TRACE = "".join(f"{250 * i},{i % 50}\n" for i in range(160))


def weir(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize(
    "command",
    [
        "up {}.yaml",
        "render {}.yaml",
        "down {}",
        "status {}",
        "monitor {}",
        "fetch {}.yaml",
        "generate a --family {}.yaml",
        "generate a --out {}.d/a.png",
        "profile --out p.json --family {}.yaml",
        "profile --out p.json --prompts {}.txt",
        "evaluate --family {}.yaml",
        "train --budget {}",
        "calibrate {}.json",
        "plan --demand 4 --objective {}",
        "plan --demand 4 --solver {}",
        "simulate --trace {}.csv",
        "simulate --trace trace.csv --policy {}",
        "simulate --trace trace.csv --scores {}.txt",
        "simulate --trace trace.csv --plot {}.doc",
        "compare --trace {}.csv",
        "cascades diffserve-1 {}.json",
        "replay {}.csv --url http://127.0.0.1:9",
        "replay trace.csv --url {}",
        "score {}",
        "keys list --file {}.yaml",
        "levels check {}.safetensors",
        "levels fit --steps {}",
        "cache replay-log {}.csv",
        "cache fit-predictor {}.txt --out p.safetensors",
    ],
)
def test_an_error_quotes_the_users_text_unchanged(command: str, text: str) -> None:
    Path("trace.csv").write_text(TRACE)
    words = [word.replace("{}", text) for word in command.split(" ")]
    refused = weir(*words)
    assert refused.exit_code == 2, refused.output
    assert text in refused.stderr or repr(text)[1:-1] in refused.stderr


@pytest.mark.parametrize("text", WRITTEN)
def test_file_names_are_printed_unchanged_on_one_line(text: str) -> None:
    folder = Path(f"{text} in a folder whose name is longer than a line of most terminals is wide")
    folder.mkdir(parents=True)
    trace, picture, keys, profile = (folder / f"a.{suffix}" for suffix in ("csv", "svg", "yaml", "json"))
    trace.write_text(TRACE)
    profile.write_text(json.dumps(PROFILE))
    figures = {"confidences": [0.2, 0.7], "quality": {"discriminator": [0.8, 0.6]}}
    Path("evaluation.json").write_text(json.dumps(figures))
    for words in (
        ("simulate", "--trace", trace, "--gpus", 4, "--policy", "all-light", "--plot", picture),
        ("cascades", "diffserve-1", "diffserve-2", "--gpus", 4, "--trace", trace),
        ("calibrate", "evaluation.json", "--profile", profile),
        ("keys", "new", "--name", "alice", "--file", keys),
    ):
        made = weir(*words)
        assert made.exit_code == 0, made.output
        assert str(words[-1]) in made.output

"""Tests of a user's own code on a service: the module of docs/extending.md, in the folder where `weir up` is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.deploy.conftest import toy_service
from tests.traces.test_report import outcome
from traces.outcome import save_outcomes
from traces.replay import ROWS
from weir.own_code import FOLDER

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "extending.md"
OWN: dict[str, Any] = {
    "controller": {"policy": "mine:HalfHeavy"},
    "cache": {"mode": "read-write", "encoder": "mine:Letters", "eviction": "mine:Largest", "lookup_s": 5, "fetch_s": 1},
}


def write_module(folder: Path) -> None:
    """Writes the documented module to ``mine.py``."""
    _, _, rest = DOCUMENT.read_text().partition("cat > mine.py << 'PYTHON'\n")
    (folder / "mine.py").write_text(rest.partition("PYTHON\n```")[0])


def weir(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a folder, as the installed `weir` does: without the folder on Python's path."""
    start = "import sys; sys.path.remove(''); from cli.main import app; app()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop(FOLDER, None)  # of a service that a test has started in this process
    command = [sys.executable, "-W", "ignore", "-c", start, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_service_plans_caches_and_evicts_by_code_of_the_users_own(tmp_path: Path) -> None:
    write_module(tmp_path)
    toy_service(tmp_path, **OWN)
    up = weir(tmp_path, "up", "toy.yaml", "--detach")
    try:
        assert up.returncode == 0, up.stderr
        status = json.loads(weir(tmp_path, "status", "--json").stdout)
        url = str(status["url"])
        body, found = {"prompt": "a red circle", "model": "toy/heavy"}, None
        end = time.monotonic() + 60
        while found is None:  # the cache has the first image some time after its answer
            assert time.monotonic() < end
            answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            found = answer.json()["data"][0]["weir"]["cache"]
        assert found["similarity"] == pytest.approx(1.0)
        status = json.loads(weir(tmp_path, "status", "--json").stdout)
        assert "mine:HalfHeavy" in json.dumps(status)
    finally:
        weir(tmp_path, "down")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"controller": {"policy": "mine:Nobody"}}, "policy: mine:Nobody: AttributeError"),
        (
            {"controller": {"policy": "mine:Largest"}},
            "policy: mine:Largest is not a subclass of controller.policy.Policy",
        ),
        (
            {"cache": {"mode": "read", "eviction": "theirs:Largest"}},
            "cache.eviction: theirs:Largest: ModuleNotFoundError",
        ),
        ({"cache": {"mode": "read", "eviction": "oldest"}}, "cache.eviction is 'oldest'; choose one of fifo"),
        ({"cache": {"mode": "read", "encoder": "broken:Letters"}}, "cache.encoder: broken:Letters: ZeroDivisionError"),
        ({"prompt_filter": "mine:Nobody"}, "prompt_filter: mine:Nobody: AttributeError"),
        ({"prompt_filter": "words"}, "prompt_filter: words: ModuleNotFoundError"),
    ],
)
def test_code_that_cannot_be_used_is_named_before_anything_starts(
    fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    write_module(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    toy_service(tmp_path, **fields)
    checked = weir(tmp_path, "check", "toy.yaml")
    assert checked.returncode == 2
    assert complaint in " ".join(checked.stderr.split())
    assert "Traceback" not in checked.stderr


def test_a_discriminator_of_ones_own_judges_the_light_image(tmp_path: Path) -> None:
    write_module(tmp_path)
    shipped = REPOSITORY / "deploy" / "families"
    family = yaml.safe_load((shipped / "weir-tiny.yaml").read_text())
    family |= {key: str((shipped / family[key]).resolve()) for key in ("pipeline", "clip")}
    family["light"]["unet"] = str((shipped / family["light"]["unet"]).resolve())
    family["discriminator"] = "mine:Brightness"
    del family["adapters"]  # their files are relative, too
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(family))
    drawn = weir(tmp_path, "generate", "a red circle", "--family", "family.yaml", "--threshold", "0", "--out", "a.png")
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "a.png") as image:
        brightness = np.asarray(image.convert("RGB")).mean() / 255
    said = re.search(r"confidence in light (0\.\d+)", drawn.stdout + drawn.stderr)
    assert said is not None
    assert float(said[1]) == pytest.approx(brightness, abs=0.01)


def test_a_measure_of_ones_own_scores_the_images_of_a_replay(tmp_path: Path) -> None:
    write_module(tmp_path)
    run = tmp_path / "run"
    (run / "images").mkdir(parents=True)
    outcomes = [outcome(i, image=f"images/{i}.png") for i in range(2)]
    for shade, it in zip((0, 255), outcomes, strict=True):
        Image.new("RGB", (8, 8), (shade,) * 3).save(run / str(it.image))
    save_outcomes(outcomes, run / ROWS)
    scored = weir(tmp_path, "score", "run", "--measure", "mine:Brightness", "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["runs"][0]["mine:Brightness"] == pytest.approx(0.5)

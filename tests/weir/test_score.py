"""`weir score`: measures images of replays with the family's or published models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from cli.main import app
from quality.inception import InceptionV3
from traces.outcome import OutcomeFile, RequestOutcome
from training.scenes import caption, render, sample_scene

CLIP = Path("models/weir-tiny/clip")


def scenes(count: int, seed: int) -> list[tuple[str, Image.Image]]:
    rng = np.random.default_rng(seed)
    return [(caption(scene), Image.fromarray(render(scene))) for scene in (sample_scene(rng) for _ in range(count))]


def replayed(folder: Path, images_of: Sequence[tuple[str, Image.Image | None]]) -> Path:
    """The folder of a replay with the given images; None for a request without an image."""
    (folder / "images").mkdir(parents=True)
    with OutcomeFile(folder / "requests.csv") as file:
        for i, (prompt, image) in enumerate(images_of):
            name = "" if image is None else f"images/{i}.png"
            if image is not None:
                image.save(folder / name)
            status, error = (200, "") if image else (503, "overloaded")
            file.append(RequestOutcome(i, i, i, 0.5, status, error, prompt, image=name))
    return folder


def score(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["score", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A replay with matching images, one with shuffled images of which one is missing, and a folder of real images."""
    images_of = scenes(12, 1)
    prompts, images = [prompt for prompt, _ in images_of], [image for _, image in images_of]
    shuffled: list[Image.Image | None] = [None, *images[:-1]]
    wrong = replayed(tmp_path / "wrong", list(zip(prompts, shuffled, strict=True)))
    (tmp_path / "real").mkdir()
    for i, (_, image) in enumerate(scenes(20, 2)):
        image.save(tmp_path / "real" / f"{i}.png")
    return replayed(tmp_path / "right", images_of), wrong, tmp_path / "real"


def test_a_replay_is_measured_by_the_familys_models_and_compared_with_another(runs: tuple[Path, Path, Path]) -> None:
    right, wrong, real = runs
    code, out, err = score(right, wrong, "--reference", real, "--against", right, "--json")
    assert code == 0, err
    first, second = json.loads(out)["runs"]
    assert first.keys() == {"run", "images", "attributes", "clip", "frechet", "paired"}
    assert (first["images"], second["images"]) == (12, 11)
    assert first["attributes"] > second["attributes"] + 0.2
    assert first["paired"]["attributes"] == {"ratio": 1, "low": 1, "high": 1, "images": 12}
    assert second["paired"]["attributes"]["images"] == 11
    assert second["paired"]["attributes"]["high"] < 1


def test_published_models_can_be_given_as_folders(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    right, wrong, real = runs
    torch.manual_seed(0)
    (tmp_path / "inception").mkdir()
    weights = InceptionV3(narrow=8).state_dict() | {"fc.weight": torch.zeros(10, 256)}
    save_file(weights, tmp_path / "inception" / "model.safetensors")
    shutil.copytree(CLIP, tmp_path / "pick")
    named = ("--clip", CLIP, "--pick", tmp_path / "pick", "--inception", tmp_path / "inception")
    code, out, err = score(right, wrong, "--reference", real, *named, "--json")
    assert code == 0, err
    first, second = json.loads(out)["runs"]
    assert first.keys() == {"run", "images", "clip", "pick", "frechet"}
    assert first["clip"] > second["clip"]
    code, out, _ = score(right, "--against", wrong, "--clip", CLIP)
    assert code == 0
    assert "images 12" in out
    assert "11 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "create it with `weir replay`"),
        (["empty"], "kept no images"),
        (["right", "--against", "late"], "no request in common"),
        (["right", "--reference", "empty"], "at least two images"),
        (["right", "--clip", "empty"], "empty"),
        (["right", "--family", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_replays_that_cannot_be_measured_are_refused_by_name(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    replayed(tmp_path / "empty", [("a red circle", None)])
    replayed(tmp_path / "late", [("a red circle", None)] * 12 + scenes(2, 3))
    monkeypatch.chdir(tmp_path)
    code, out, err = score(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err

"""From a family file and prompts to a service: every stage once, whatever ends it, and files that `weir up` takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from adoption import run
from adoption.images import DrawnImages, Round
from testing.tiny_models import SIZE, sdxl_pipeline
from testing.tiny_transformers import flux_family
from tests.adoption.dying_adoption import CHOICES, PROMPTS
from weir.assets import ROOT
from weir.config import load_family, load_service
from weir.core import ImageRequest
from weir.errors import ConfigError
from weir.profiles import load_profile
from workers.models.family import Family

#: Warnings of diffusers about its own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    sdxl_pipeline().save_pretrained(folder / "pipeline")

    def variant(name: str, steps: int) -> dict[str, Any]:
        return {"name": name, "scheduler": "euler", "steps": steps, "guidance": 0}

    fields = {
        "name": "tiny",
        "pipeline": "./pipeline",
        "size": SIZE,
        "device": "cpu",
        "light": variant("tiny-light", 1),
        "heavy": variant("tiny-heavy", 4),
    }
    (folder / "family.yaml").write_text(yaml.safe_dump(fields))
    return folder / "family.yaml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adopted")


@pytest.fixture(scope="module")
def killed(family_file: Path, out: Path) -> list[dict[str, Any]]:
    """What the runs of an adoption did that was killed in each of its stages, and at last was not."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.adoption.dying_adoption", str(family_file), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def adopted(killed: list[dict[str, Any]], out: Path) -> Path:
    """The folder of an adoption that was finished after all these deaths."""
    assert killed[-1]["ended"] == 0
    return out


def test_the_service_is_complete(adopted: Path) -> None:
    service, family = load_service(adopted / "service.yaml")
    profile = load_profile(str(service.profile), family.keys, family.size)
    assert service.controller.policy == "weir"
    assert len(profile.light.confidences) == len(PROMPTS)
    assert profile.light.quality is not None
    assert profile.light.fixed is not None
    assert profile.light.fixed.discriminator_s > 0
    assert service.plan.size == CHOICES.replicas


def test_replicas_judge_with_the_new_discriminator(adopted: Path) -> None:
    """The confidences of a served image are those of the card's network."""
    _, family = load_service(adopted / "service.yaml")
    engine = Family.load(family, threads=1)
    requests = [ImageRequest(str(i), prompt, i, family.size, float("inf")) for i, prompt in enumerate(PROMPTS[:3])]
    confidences = [it.confidence for it in engine.generate("light", requests)]
    assert all(it is not None and 0 <= it <= 1 for it in confidences)
    card = json.loads((adopted / "discriminators" / "light" / "card.json").read_text())
    assert card["trained for"] == "tiny/light"
    assert card["prompts"] == len(PROMPTS)


def test_the_report_shows_images_and_every_discriminator(adopted: Path) -> None:
    page = (adopted / "report.html").read_text()
    for name in ("matching pixels", "convolutional", "best possible", "What is still weak"):
        assert name in page
    assert page.count("data:image/webp") >= 12


def test_a_second_run_does_nothing_again(adopted: Path, family_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_WORK", {})  # every stage would fail
    notes: list[run.Note] = []
    run.adopt(load_family(family_file), PROMPTS, adopted, CHOICES, say=notes.append)
    assert all(it.skipped for it in notes)
    assert len(notes) == len(run.stages(load_family(family_file), PROMPTS, CHOICES))


def test_a_run_that_was_killed_in_any_stage_continues_there(killed: list[dict[str, Any]]) -> None:
    *dead, alive = killed
    assert all(it["ended"] == -signal.SIGKILL for it in dead)
    assert alive["ended"] == 0
    # A run finishes the stage in which the one before was killed, and is killed in the next.
    assert [it["new results"] for it in killed] == [[], *([it["stage"]] for it in dead)]


def test_nothing_is_made_twice_after_a_kill(killed: list[dict[str, Any]]) -> None:
    assert all(not it["written again"] for it in killed)
    first = next(it["new images"] for it in killed if it["stage"] == "images")
    assert 0 < first < 3 * len(PROMPTS)
    assert sum(it["new images"] for it in killed) == 3 * len(PROMPTS)


def test_a_pair_of_diffusion_transformers_becomes_a_service(tmp_path: Path) -> None:
    family = load_family(flux_family(tmp_path))
    run.adopt(family, PROMPTS, tmp_path / "out", replace(CHOICES, light_rounds=1, cache_pairs=0))
    service, _ = load_service(tmp_path / "out" / "service.yaml")
    assert service.plan.size == CHOICES.replicas
    assert (tmp_path / "out" / "report.html").is_file()


def test_only_missing_images_are_generated(tmp_path: Path) -> None:
    images = DrawnImages(tmp_path, Round("light"), 4)
    images.write(1, b"png")
    assert images.missing() == [0, 2, 3]


def test_variants_share_the_seeds_of_a_round() -> None:
    assert [Round(key).seed(7) for key in ("light", "heavy")] == [7, 7]
    assert Round("light", 1).seed(7) != 7


def test_too_few_prompts_are_refused_before_any_work(family_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--prompts: the number of different prompts is 1; give at least 40"):
        run.adopt(load_family(family_file), ["a", "a"], tmp_path, CHOICES)
    assert list(tmp_path.iterdir()) == []


def test_a_measure_without_a_positive_mean_is_refused(family_file: Path, tmp_path: Path) -> None:
    choices = replace(CHOICES, measure=f"{__name__}:Dark")
    with pytest.raises(ConfigError, match="the mean score of heavy is -"):
        run.adopt(load_family(family_file), PROMPTS, tmp_path, choices)


class Dark:
    """A measure whose scores are all negative."""

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.from_numpy(np.full(len(images), -1.0))

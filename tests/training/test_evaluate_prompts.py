"""A family without a checker is measured on prompts, by any measure of single images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quality.calibration import Calibration
from quality.suite import load_judge
from testing.brightness import Brightness
from testing.tiny_models import SIZE, sdxl_pipeline
from training.evaluate_prompts import evaluate_prompts
from weir.config import FamilyConfig
from weir.errors import ConfigError

PROMPTS = [f"prompt {i}" for i in range(10)]


class Darkness(Brightness):
    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return -super().score(images, prompts)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    sdxl_pipeline().save_pretrained(folder)
    return folder


def family(pipeline: Path, discriminator: str | None = f"{__name__}:Brightness") -> FamilyConfig:
    def variant(name: str, steps: int) -> dict[str, Any]:
        return {"name": name, "scheduler": "euler", "steps": steps, "guidance": 0}

    return FamilyConfig.model_validate(
        {
            "name": "tiny",
            "pipeline": str(pipeline),
            "size": SIZE,
            "device": "cpu",
            "light": variant("tiny-light", 1),
            "heavy": variant("tiny-heavy", 3),
            "discriminator": discriminator,
        }
    )


def test_the_result_leads_to_a_threshold_and_a_profile(pipeline: Path, tmp_path: Path) -> None:
    config = family(pipeline)
    judge = load_judge(config, f"{__name__}:Brightness")
    figures = evaluate_prompts(config, PROMPTS, judge, "brightness", tmp_path)

    measured = Calibration.read(tmp_path / "evaluation.json")
    assert len(measured.confidences) == len(PROMPTS)
    assert measured.quality[0] == pytest.approx(figures["scores"]["heavy"])  # type: ignore[index]
    assert measured.quality[-1] == pytest.approx(figures["scores"]["light"])  # type: ignore[index]
    assert measured.profile(heavy_steps=3).values == measured.quality
    assert json.loads((tmp_path / "evaluation.json").read_text())["measure"] == "brightness"
    assert (tmp_path / "quality_by_share.png").stat().st_size > 1000


def test_no_order_of_the_images_beats_the_oracle(pipeline: Path, tmp_path: Path) -> None:
    config = family(pipeline)
    figures: Any = evaluate_prompts(config, PROMPTS, load_judge(config, f"{__name__}:Brightness"), "it", tmp_path)
    oracle, by_confidence = np.array(figures["quality"]["oracle"]), np.array(figures["quality"]["discriminator"])
    assert (oracle >= by_confidence - 1e-9).all()


@pytest.mark.parametrize(
    ("discriminator", "measure", "complaint"),
    [
        (None, "Brightness", "light has no discriminator"),
        (f"{__name__}:Brightness", "Darkness", "the mean score of heavy is -0"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    discriminator: str | None, measure: str, complaint: str, pipeline: Path, tmp_path: Path
) -> None:
    config = family(pipeline, discriminator)
    with pytest.raises(ConfigError, match=complaint):
        evaluate_prompts(config, PROMPTS, load_judge(config, f"{__name__}:{measure}"), "it", tmp_path)
    assert list(tmp_path.iterdir()) == []

"""The pictures of an evaluation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.card import _contact_sheet


@pytest.mark.parametrize("count", [8, 15, 16])
def test_an_evaluation_of_few_prompts_has_a_contact_sheet(count: int, tmp_path: Path) -> None:
    images = {name: np.zeros((count, 64, 64, 3), np.uint8) for name in ("light", "heavy_5", "heavy_50")}
    _contact_sheet(tmp_path / "contact.png", images, count)
    with Image.open(tmp_path / "contact.png") as sheet:
        assert sheet.width > 0

"""A valid request, a small profile and family files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from testing.tiny_models import SIZE
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageSize
from weir.profiles import Profile, VariantProfile


def profile(light_s: float = 0.01, heavy_s: float = 0.04, confidences: tuple[float, ...] = (0.2, 0.9)) -> Profile:
    return Profile(
        family="tiny",
        device="test",
        variants={
            "light": VariantProfile(
                name="l", steps=1, batch_sizes=(1, 4), latency_s=(light_s, 2 * light_s), confidences=confidences
            ),
            "heavy": VariantProfile(name="h", steps=50, batch_sizes=(1, 4), latency_s=(heavy_s, 2 * heavy_s)),
        },
    )


def image_request(name: str = "a", **fields: Any) -> ImageRequest:
    """A valid request with ``fields`` replaced."""
    usual: dict[str, Any] = {
        "prompt": f"a red {name}",
        "seed": 7,
        "size": ImageSize(SIZE, SIZE),
        "deadline": 4e9,
    }
    return ImageRequest(id=name, **(usual | fields))


def variant(name: str, **fields: Any) -> dict[str, Any]:
    """A variant of a family file with ``fields`` replaced."""
    return {"name": name, "scheduler": "euler", "steps": 2, "guidance": 0} | fields


def family(pipeline: Path | str, light: dict[str, Any], heavy: dict[str, Any], **fields: Any) -> FamilyConfig:
    """A family file with ``fields`` replaced."""
    usual = {"name": "tiny", "pipeline": str(pipeline), "size": SIZE, "device": "cpu"}
    return FamilyConfig.model_validate(usual | {"light": light, "heavy": heavy} | fields)


def with_bad_value(file: Path, tensor: str, value: float) -> None:
    """Replaces the first value of a tensor in a safetensors file."""
    tensors = load_file(file)
    tensors[tensor].view(-1)[0] = value
    save_file(tensors, file)

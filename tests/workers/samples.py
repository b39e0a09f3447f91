"""A valid request and a small profile for tests."""

from __future__ import annotations

from typing import Any

from testing.tiny_models import SIZE
from weir.core import ImageRequest
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
        "width": SIZE,
        "height": SIZE,
        "deadline": 4e9,
    }
    return ImageRequest(id=name, **(usual | fields))

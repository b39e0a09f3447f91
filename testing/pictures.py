"""Pictures for tests and demonstrations of edits."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from weir.core import ImageSize


def gradient(size: ImageSize) -> Image.Image:
    """A picture in which every pixel shows where it belongs: red grows to the right, green downwards."""
    right = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (right, down, Image.new("L", size, 90)))


def mask(size: ImageSize) -> Image.Image:
    """White where the right half is generated; black where the left one stays."""
    picture = Image.new("L", size, 0)
    picture.paste(255, (size.width // 2, 0, size.width, size.height))
    return picture


def transparent(size: ImageSize) -> Image.Image:
    """The same mask as OpenAI's clients send it: transparent where the picture is generated."""
    picture = Image.new("RGBA", size, "black")
    picture.putalpha(mask(size).point(lambda it: 255 - it))
    return picture


def png(picture: Image.Image, **how: Any) -> bytes:
    """A picture as PNG, or in the ``format`` among the options of Pillow's ``save``."""
    out = io.BytesIO()
    picture.save(out, **{"format": "PNG", **how})
    return out.getvalue()

"""The picture in the format that the client asked for. Workers send PNG."""

from __future__ import annotations

import asyncio
import io

from PIL import Image

from load_balancer.order import ImageFormat


async def encoded(png: bytes, output_format: ImageFormat, compression: int) -> bytes:
    """The same picture as png (untouched), jpeg or webp; ``compression`` is their quality, 0…100."""
    if output_format == "png":
        return png
    return await asyncio.to_thread(_reencoded, png, output_format, compression)


def _reencoded(png: bytes, output_format: ImageFormat, quality: int) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(out, output_format, quality=quality)
    return out.getvalue()

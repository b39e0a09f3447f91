"""Converts images to the format that the client requested, in shares by caller. Workers send PNG."""

from __future__ import annotations

import io
import os
import struct

from PIL import Image

from load_balancer.http.shared_threads import SharedThreads
from load_balancer.runner.generation_request import ImageFormat
from weir import tracing


class ImageEncoder:
    """Encodes images in threads of its own, of which every caller has a share.

    Args:
        threads: number of images that are encoded at once; None: one for each CPU, and at least two.
    """

    def __init__(self, threads: int | None = None):
        self._threads = SharedThreads(threads or max(2, os.cpu_count() or 1), "encode")

    async def encoded(
        self,
        caller: str,
        png: bytes,
        output_format: ImageFormat,
        compression: int,
        size: tuple[int, int] | None = None,
    ) -> bytes:
        """Converts a PNG to png (unchanged), jpeg or webp; ``compression`` is the quality of jpeg and webp, 0…100.

        Args:
            caller: name of the caller, in whose share it is encoded.
            size: width and height in pixels that a smaller image is scaled to.
        """
        if size is not None and all(has >= wanted for has, wanted in zip(_size(png), size, strict=True)):
            size = None
        if output_format == "png" and size is None:
            return png

        def encode() -> bytes:
            with tracing.span("encode", format=output_format):
                return reencoded(png, output_format, compression, size)

        return await self._threads.run(caller, encode)


def _size(png: bytes) -> tuple[int, int]:
    """Width and height from the header of a PNG."""
    return struct.unpack_from(">II", png, 16) if len(png) >= 24 else (0, 0)


def reencoded(png: bytes, output_format: ImageFormat, quality: int, size: tuple[int, int] | None = None) -> bytes:
    """The same in the calling thread: always encodes anew."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        converted = image.convert("RGB")
    if size is not None:
        converted = converted.resize(size, Image.Resampling.BICUBIC)
    converted.save(out, output_format, quality=quality)
    return out.getvalue()

"""Reads the pictures of an edit: what clients send becomes the small, sound PNGs that workers get.

A picture is read no further than its header before its format and its number of pixels are known to be allowed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from load_balancer.http.shared_threads import SharedThreads
from weir.core import ImageSize
from weir.errors import InvalidRequest

#: Names of the formats in Pillow. Each plug-in that reads untrusted data is code that can be attacked.
FORMATS = ("PNG", "JPEG", "WEBP")
ACCEPTED = "a PNG, JPEG or WebP image"
#: A JPEG of several pictures, such as a photo with its preview; the first one is the photo.
_PHOTO = "MPO"
#: Number of pictures that are read at once, because each takes up to a few hundred megabytes.
_THREADS = 2


class EditPictures(NamedTuple):
    """Pictures of the size of the images that are generated, as in :class:`weir.core.Edit`."""

    image: bytes
    mask: bytes | None
    size: ImageSize


class PictureReader:
    """Reads pictures in threads of its own, of which every caller has a share.

    Args:
        most_pixels: of a picture that a client sends.
    """

    def __init__(self, most_pixels: int):
        self._most_pixels = most_pixels
        self._threads = SharedThreads(_THREADS, "read-pictures")

    async def read(
        self, caller: str, image: BinaryIO, mask: BinaryIO | None, size_for: Callable[[ImageSize], ImageSize]
    ) -> EditPictures:
        """Reads the pictures of one request (:func:`read_pictures`).

        Args:
            caller: name of the caller, in whose share they are read.
        """
        return await self._threads.run(caller, lambda: read_pictures(image, mask, size_for, self._most_pixels))


def read_pictures(
    image: BinaryIO, mask: BinaryIO | None, size_for: Callable[[ImageSize], ImageSize], most_pixels: int
) -> EditPictures:
    """Reads an image and its mask, and brings both to one size, cropped around the centre where the shape differs.

    They are turned upright as their EXIF data says. An image is put on white where it is transparent. Fully transparent
    pixels of the mask are what is generated.

    Args:
        size_for: the size to generate for an image of a size.
        most_pixels: of a picture that a client sends.

    Raises:
        InvalidRequest: a picture is no image, or too large, or the mask does not fit the image; ``param`` names it.
    """
    upright = _upright("image", image, most_pixels)
    has = ImageSize(*upright.size)
    size = size_for(has)
    fitted = _on_white(ImageOps.fit(_scalable(upright), size, Image.Resampling.LANCZOS))
    return EditPictures(_png(fitted), None if mask is None else _mask(mask, has, size, most_pixels), size)


def _mask(mask: BinaryIO, has: ImageSize, size: ImageSize, most_pixels: int) -> bytes:
    upright = _upright("mask", mask, most_pixels)
    if upright.size != has:
        raise _refused("mask", f"is {ImageSize(*upright.size)}", f"the size of the image, {has}")
    if not upright.has_transparency_data:
        raise _refused("mask", "has no alpha channel", "a PNG whose fully transparent pixels are to be generated")
    alpha = (upright if "A" in upright.getbands() else upright.convert("RGBA")).getchannel("A")
    generated = ImageOps.fit(alpha.point(lambda it: 255 * (it == 0)), size, Image.Resampling.BILINEAR)
    generated = generated.point(lambda it: 255 * (it >= 128))
    if generated.getbbox() is None:
        raise _refused("mask", f"has no fully transparent area at {size}", "an area to be generated")
    return _png(generated)


def _upright(param: str, file: BinaryIO, most_pixels: int) -> Image.Image:
    """Opens and decodes a picture."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > most_pixels:
                raise _too_many_pixels(param, f"is {ImageSize(*opened.size)}", most_pixels)
            if getattr(opened, "is_animated", False) and opened.format != _PHOTO:
                raise _refused(param, "is animated", "a single picture")
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return opened
    except InvalidRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(param, "has too many pixels", most_pixels) from None
    except UnidentifiedImageError:
        raise _refused(param, "is no image of these formats", ACCEPTED) from None
    except Exception as error:  # decoders raise anything when their input is damaged
        raise _refused(param, f"is damaged ({type(error).__name__}: {str(error)[:100]})", ACCEPTED) from None


def _scalable(picture: Image.Image) -> Image.Image:
    """The picture in a mode that can be scaled smoothly; most are, and a copy of a large one takes much memory."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which would be clipped to 8
        return picture.convert("I").point(lambda it: it / 256).convert("L")
    if picture.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in picture.info:
        return picture
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands():
        return picture.convert("RGB")
    whole = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


def _png(picture: Image.Image) -> bytes:
    """Encodes a picture without its metadata, such as the place where a photo was taken."""
    picture.info = {}
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _too_many_pixels(param: str, problem: str, most: int) -> InvalidRequest:
    return _refused(param, problem, f"at most {most} pixels")


def _refused(param: str, problem: str, accepted: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}; accepted: {accepted}", param=param)

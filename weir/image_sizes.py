"""The sizes of images that a family generates: those that it lists, and any other within a range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from weir.core import ImageSize

#: Range of the sides of images, pixels.
LEAST_SIDE, MOST_SIDE = 16, 4096


def _size(given: Any) -> ImageSize:
    if isinstance(given, str) and given.isdecimal():
        given = int(given)
    size = given if isinstance(given, ImageSize) else ImageSize.of(given)
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in size):
        raise ValueError(f"{given} is out of range; a side has {LEAST_SIDE} to {MOST_SIDE} pixels")
    return size


#: A size in a file: ``WIDTHxHEIGHT``, or the side of a square.
SizeField = Annotated[ImageSize, BeforeValidator(_size), PlainSerializer(str)]


class SizeRange(BaseModel):
    """Any width and height within limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    multiple: int = Field(ge=1, le=MOST_SIDE, description="both sides are multiples of it")
    least_side: int = Field(ge=LEAST_SIDE, le=MOST_SIDE, description="shortest side, pixels")
    most_side: int = Field(ge=LEAST_SIDE, le=MOST_SIDE, description="longest side, pixels")
    pixels: int | None = Field(None, ge=LEAST_SIDE**2, description="most pixels of an image; null: no further limit")

    @model_validator(mode="after")
    def _some_size(self) -> SizeRange:
        side = next(iter(self._sides()), None)
        if side is None:
            raise ValueError(f"no multiple of {self.multiple} lies in {self.least_side} to {self.most_side}")
        if self.pixels is not None and side * side > self.pixels:
            raise ValueError(f"pixels is {self.pixels}; the smallest size, {side}x{side}, has {side * side}")
        return self

    def __contains__(self, size: ImageSize) -> bool:
        fits = all(self.least_side <= side <= self.most_side and side % self.multiple == 0 for side in size)
        return fits and (self.pixels is None or size.pixels <= self.pixels)

    def __str__(self) -> str:
        sides = f"sides of {self.least_side} to {self.most_side} in multiples of {self.multiple}"
        return f"any WIDTHxHEIGHT with {sides}" + ("" if self.pixels is None else f" and at most {self.pixels} pixels")

    @property
    def pattern(self) -> str:
        """Regular expression (ECMA 262) of exactly the sizes in the range, for a JSON schema."""
        rows = []
        for width in self._sides():
            heights = [str(height) for height in self._sides() if ImageSize(width, height) in self]
            if heights:
                rows.append(f"{width}x({'|'.join(heights)})")
        return f"^({'|'.join(rows)})$"

    def _sides(self) -> range:
        least = -(-self.least_side // self.multiple) * self.multiple
        return range(least, self.most_side + 1, self.multiple)


@dataclass(frozen=True, slots=True)
class AllowedSizes:
    """Sizes that requests may use.

    Attributes:
        listed: by name in the family file; the first one is the family's own.
        others: range of all other sizes; None: there are no others.
    """

    listed: tuple[ImageSize, ...]
    others: SizeRange | None = None

    @property
    def own(self) -> ImageSize:
        """The size of images whose request names none."""
        return self.listed[0]

    def __contains__(self, size: ImageSize) -> bool:
        return size in self.listed or (self.others is not None and size in self.others)

    def __iter__(self) -> Iterator[ImageSize]:
        return iter(self.listed)

    def __str__(self) -> str:
        listed = " or ".join(map(str, self.listed))
        return listed if self.others is None else f"{listed}, or {self.others}"

    def within(self, pixels: int | None) -> AllowedSizes:
        """The sizes of at most ``pixels`` pixels; None: all. The family's own size always remains."""
        if pixels is None:
            return self
        others = self.others
        if others is not None:
            limits = others.model_dump() | {"pixels": min(pixels, others.pixels or pixels)}
            smallest = -(-others.least_side // others.multiple) * others.multiple
            others = SizeRange(**limits) if smallest**2 <= limits["pixels"] else None
        return replace(self, listed=tuple(it for it in self if it.pixels <= pixels or it == self.own), others=others)

    def for_picture(self, size: ImageSize) -> ImageSize:
        """The size of images that are made from a picture: its own, or the nearest one."""
        return size if size in self else self.nearest(size)

    def nearest(self, wanted: ImageSize) -> ImageSize:
        """The listed size whose shape, and then whose area, is nearest to another size, on a logarithmic scale."""

        def distance(size: ImageSize) -> tuple[float, float]:
            shape = abs(math.log(size.width * wanted.height / (size.height * wanted.width)))
            return round(shape, 6), abs(math.log(size.pixels / wanted.pixels))

        return min(self.listed, key=distance)

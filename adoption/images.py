"""Images of an adoption: every prompt by every variant, one PNG file an image, so that a stopped run continues."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from weir.config import FamilyConfig
from weir.core import ImageRequest, Overrides
from weir.errors import ConfigError
from weir.files import make_folder, written_whole
from workers.engine.engine import Engine

#: Images that are looked at together.
BATCH = 32
#: Distance of the seeds of two rounds.
_ROUND = 1_000_003

#: Called with the number of finished images and the number of all images.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Round:
    """One image of every prompt by one variant.

    The image of prompt i in round r has the seed i + r · 1,000,003. So the images of all variants in one round share
    their seeds.

    Attributes:
        steps: number of denoising steps; None: the variant's own.
    """

    variant: str
    number: int = 0
    steps: int | None = None

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.number}" + (f"-{self.steps}-steps" if self.steps else "")

    def seed(self, prompt: int) -> int:
        return prompt + self.number * _ROUND


class DrawnImages:
    """The images of a round in a folder."""

    def __init__(self, folder: Path, round_: Round, count: int):
        self.round, self.count = round_, count
        self._folder = folder / round_.name
        make_folder(self._folder)

    def missing(self) -> list[int]:
        """Indices of the prompts without an image."""
        there = {path.name for path in self._folder.iterdir()}
        return [i for i in range(self.count) if self._path(i).name not in there]

    def write(self, prompt: int, png: bytes) -> None:
        with written_whole(self._path(prompt)) as draft:
            draft.write_bytes(png)

    def read(self, prompts: Sequence[int]) -> list[Image.Image]:
        """The images of these prompts.

        Raises:
            ConfigError: a file is damaged.
        """
        return [self._read(self._path(i)) for i in prompts]

    def parts(self) -> list[range]:
        """The indices of all images, in batches."""
        return [range(i, min(i + BATCH, self.count)) for i in range(0, self.count, BATCH)]

    def _read(self, path: Path) -> Image.Image:
        try:
            return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        except OSError as error:
            raise ConfigError(f"{path}: is not an image ({error}); delete it to generate it again") from None

    def _path(self, prompt: int) -> Path:
        return self._folder / f"{prompt:05d}.png"


def draw(
    engine: Engine,
    family: FamilyConfig,
    prompts: Sequence[str],
    images: DrawnImages,
    batch: int,
    progress: Progress | None = None,
) -> None:
    """Generates the images of a round that are missing.

    Args:
        batch: images that are generated together.

    Raises:
        ConfigError: an image cannot be generated; the message names the prompt.
    """
    missing, round_ = images.missing(), images.round
    done = images.count - len(missing)
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        requests = [
            ImageRequest(
                f"adopt-{i}",
                prompts[i],
                round_.seed(i),
                family.size,
                float("inf"),
                overrides=Overrides(steps=round_.steps),
            )
            for i in part
        ]
        for i, output in zip(part, engine.generate(round_.variant, requests), strict=True):
            if output.error is not None:
                raise ConfigError(
                    f"family {family.name}: {round_.variant}: prompt {i + 1} ({prompts[i]!r}): {output.error[1]}; "
                    "remove the prompt, or mend the family"
                )
            images.write(i, output.image)
        done += len(part)
        if progress is not None:
            progress(done, images.count)

"""All measures of images behind one interface: those of a family, or published ones by hub name.

suite = family_suite(load_family("deploy/families/weir-tiny.yaml"))
suite.measure(prompts, images, reference)   # {"frechet": 4.1, "clip": 0.85, "attributes": 0.97}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from quality.checker import AttributeChecker
from quality.clip import ClipScorer
from quality.frechet import frechet_distance
from quality.inception import InceptionFeatures
from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.own_code import is_own, made

#: Models with which published figures are measured.
INCEPTION, CLIP = "timm/inception_v3.tf_in1k", "openai/clip-vit-large-patch14"
PICK, PICK_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_BATCH = 32
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Extractor(Protocol):
    """Features [B, D] of images [B, 3, H, W] in −1…1, for the Fréchet distance."""

    def features(self, images: torch.Tensor) -> torch.Tensor: ...


class Judge(Protocol):
    """One number for each image and its prompt, higher is better; [B]."""

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor: ...


class AttributeJudge:
    """Share of the prompt's requirements that the image meets; 0 where the checker cannot read the prompt."""

    def __init__(self, checker: AttributeChecker):
        self.checker = checker

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        verdicts = self.checker.check(images, prompts)
        return torch.tensor([0.0 if v is None else v.attributes for v in verdicts])


@dataclass(frozen=True)
class Suite:
    """Judges of single images by name, and an extractor of features for sets of images, or None."""

    extractor: Extractor | None
    judges: Mapping[str, Judge]

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features of images, [N, D].

        Raises:
            ConfigError: the suite has no extractor.
        """
        if self.extractor is None:
            raise ConfigError("there is no model to compare sets of images; name an Inception-v3")
        return np.concatenate([self.extractor.features(tensors(part)).numpy() for part in _parts(images)])

    def scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """Scores by judge, [N] each."""
        return {name: scored(judge, prompts, images) for name, judge in self.judges.items()}

    def measure(
        self, prompts: Sequence[str], images: Sequence[Image.Image], reference: np.ndarray | None = None
    ) -> dict[str, float]:
        """The mean of every judge and, given the features of reference images, the Fréchet distance to them."""
        found = {name: float(values.mean()) for name, values in self.scores(prompts, images).items()}
        if reference is not None:
            found["frechet"] = frechet_distance(self.features(images), reference)
        return found


def family_suite(family: FamilyConfig) -> Suite:
    """The measures of a family: features and verdicts of its attribute checker, and its CLIP score.

    Raises:
        ConfigError: as for :func:`own_measures`, or a model cannot be loaded.
    """
    folder, clip = own_measures(family)
    checker = AttributeChecker.load(folder)
    return Suite(checker, {"attributes": AttributeJudge(checker), "clip": ClipScorer.load(clip)})


def own_measures(family: FamilyConfig) -> tuple[Path, str]:
    """The folder of the family's attribute checker, and its CLIP.

    Raises:
        ConfigError: the family has no checker or no CLIP; the message names the alternatives.
    """
    folder = checker_folder(family)
    if folder is None:
        raise ConfigError(
            f"family {family.name} has no attribute checker beside its discriminator or CLIP, as families of "
            "`weir train` do. A published model can measure its images, by hub name or folder: "
            f"`weir evaluate --prompts FILE --clip {CLIP}`, `weir score --clip {CLIP}`, and for the thresholds of a "
            f"cache `weir cache profile --clip {CLIP}`"
        )
    if family.clip is None:
        raise ConfigError(f"family {family.name} has no CLIP; name one in its file, e.g. `clip: {CLIP}`")
    return folder, family.clip


def hub_suite(
    *,
    inception: str | None = INCEPTION,
    clip: str | None = CLIP,
    pick: str | None = PICK,
    own: Sequence[str] = (),
) -> Suite:
    """The published measures FID, CLIP score and PickScore, by local folder or hub name; None omits one.

    Args:
        own: names ``module:name`` of callables that make a :class:`Judge` of one's own.

    Raises:
        ConfigError: a model cannot be loaded.
    """
    judges: dict[str, Judge] = {} if clip is None else {"clip": ClipScorer.load(clip)}
    if pick is not None:
        judges["pick"] = _pick_score(pick)
    judges |= {name: own_judge(name, "--measure") for name in own}
    return Suite(None if inception is None else InceptionFeatures.load(inception), judges)


def load_judge(
    family: FamilyConfig, name: str, *, clip: str | None = None, pick: str | None = None, device: str = "cpu"
) -> Judge:
    """One measure of single images: the family's, a published one by hub name or local folder, or one's own.

    Args:
        name: ``attributes``, ``clip``, ``pick``, or ``module:name`` of a callable that makes a :class:`Judge`.
        clip: name of a CLIP; None stands for the family's.
        pick: name of a PickScore model; a local folder has to contain tokenizer and preprocessing, too.

    Raises:
        ConfigError: the family has no such measure and no model is named, or the model cannot be loaded.
    """
    if is_own(name):
        return own_judge(name, "--judge")
    if name not in ("attributes", "clip", "pick"):
        raise ConfigError(f"--judge is {name!r}; choose one of attributes, clip, pick, or module:name of your own")
    folder, revision = checker_folder(family), None if clip else family.clip_revision
    clip = clip or family.clip
    if name == "attributes" and folder is not None:
        return AttributeJudge(AttributeChecker.load(folder))
    if name == "clip" and clip is not None:
        return ClipScorer.load(clip, device, revision=revision)
    if name == "pick" and pick is not None:
        return _pick_score(pick, device)
    raise ConfigError(
        f"family {family.name} has no measure for {name}; name a published model, by hub name or folder: "
        f"--clip {CLIP}, or --pick {PICK}"
    )


def named_measure(judge: str | None, clip: str | None, pick: str | None) -> tuple[str, list[str]]:
    """The kind of measure that the options --judge, --clip and --pick name, and the sources of its model.

    Raises:
        ConfigError: they name different measures.
    """
    models = {kind: source for kind, source in (("clip", clip), ("pick", pick)) if source}
    kind = judge or next(iter(models), "attributes")
    if models.keys() - {kind}:
        raise ConfigError("--judge, --clip and --pick name different judges; name one")
    return kind, list(models.values())


def own_judge(name: str, key: str) -> Judge:
    """A measure of one's own, ``module:name``.

    Raises:
        ConfigError: it cannot be imported or made, or has no ``score``; the message begins with ``key``.
    """
    judge: Judge = made(name, key, has=("score",))
    return judge


def _pick_score(name: str, device: str = "cpu") -> Judge:
    """On the hub, tokenizer and preprocessing are in the repository of the CLIP that PickScore was trained from."""
    return ClipScorer.load(name, device, processor=None if Path(name).is_dir() else PICK_PROCESSOR, scaled=True)


def checker_folder(family: FamilyConfig) -> Path | None:
    """Folder of the family's attribute checker, beside its discriminator or its CLIP; None if it has none."""
    for beside in filter(None, (family.light.discriminator_folder, family.clip)):
        folder = Path(beside).parent / "checker"
        if folder.exists():
            return folder
    return None


def scored(judge: Judge, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
    """The judge's score of every image for its prompt, [N]; all images have the same size."""
    return np.concatenate(
        [
            judge.score(tensors(part), list(prompts[i * _BATCH : i * _BATCH + len(part)])).numpy()
            for i, part in enumerate(_parts(images))
        ]
    )


def read_pictures(folder: Path) -> list[Image.Image]:
    """The reference images of a folder, sorted by file name.

    Raises:
        ConfigError: there are fewer than two images, one cannot be read, or their sizes differ.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES) if folder.is_dir() else []
    if len(paths) < 2:
        raise ConfigError(f"{folder}: a reference needs at least two images ({', '.join(_PICTURES)})")
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        except OSError as error:
            raise ConfigError(f"{path}: not an image: {error}") from None
    sizes = {p.size for p in images}
    if len(sizes) > 1:
        raise ConfigError(f"{folder}: the images have different sizes: {sorted(sizes)}; crop them to one size")
    return images


def tensors(images: Sequence[Image.Image]) -> torch.Tensor:
    """Images of one size as float [B, 3, H, W] in −1…1."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _parts(images: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]

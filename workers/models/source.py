"""References of a family file to weights: local folders and files, or repositories of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weir.adapters import AdapterUse
from weir.config import FamilyConfig
from weir.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """A reference of a family file to weights, with its place in the file for errors.

    Attributes:
        file_set: set of files to load from a folder, e.g. fp16; None: the files without one in their names.
    """

    family: str
    key: str
    reference: str
    revision: str | None = None
    file_set: str | None = None

    @property
    def folder(self) -> Path | None:
        """Path of the local folder or file; None for a hub repository."""
        path = Path(self.reference)
        return path if path.is_absolute() or path.exists() else None

    def error(self, what: str, remedy: str) -> ConfigError:
        revision = f" at revision {self.revision}" if self.revision else ""
        return ConfigError(f"family {self.family}: {self.key}: {self.reference}{revision}: {what}; {remedy}")


def family_source(family: FamilyConfig) -> Source:
    """The family's pipeline."""
    return Source(family.name, "pipeline", family.pipeline, family.revision, family.file_set())


def family_file(family: FamilyConfig) -> Source | None:
    """The single file with the weights of the family's pipeline; None if they are in the pipeline's folder."""
    return None if family.checkpoint is None else Source(family.name, "checkpoint", family.checkpoint)


def pipeline_source(family: FamilyConfig, key: str) -> Source:
    """The pipeline of a variant."""
    variant = family.variants[key]
    if variant.pipeline:
        return Source(family.name, f"{key}.pipeline", variant.pipeline, variant.revision, family.file_set(key))
    return family_source(family)


def denoiser_source(family: FamilyConfig, key: str) -> Source:
    """The denoiser of a variant: its own UNet, or its pipeline."""
    variant = family.variants[key]
    if variant.unet is None:
        return pipeline_source(family, key)
    return Source(family.name, f"{key}.unet", variant.unet, variant.revision, family.file_set(key))


def inpainting_key(key: str) -> str:
    """Key of a variant's inpainting UNet in the family file, and among the loaded models."""
    return f"{key}.inpainting"


def inpainting_source(family: FamilyConfig, key: str) -> Source | None:
    """The pipeline with the inpainting UNet of a variant; None if there is none."""
    variant = family.variants[key]
    if variant.inpainting is None:
        return None
    place = inpainting_key(key), variant.inpainting, variant.inpainting_revision
    return Source(family.name, *place, family.file_set(key))


def checkpoint_source(family: FamilyConfig, key: str) -> Source | None:
    """The single file with the weights of a variant's pipeline; None if they are in the pipeline's folder."""
    variant = family.variants[key]
    if not variant.pipeline:
        return family_file(family)
    return None if variant.checkpoint is None else Source(family.name, f"{key}.checkpoint", variant.checkpoint)


def vae_source(family: FamilyConfig) -> Source | None:
    """The VAE that replaces those of the pipelines; None if there is none."""
    return None if family.vae is None else Source(family.name, "vae", family.vae, family.vae_revision)


def inversion_sources(family: FamilyConfig) -> dict[str, Source]:
    """The file of each textual inversion, by its word."""
    files = family.textual_inversions
    return {word: Source(family.name, f"textual_inversions.{word}", file) for word, file in files.items()}


def adapter_source(family: str, use: AdapterUse) -> Source:
    """The weights of a LoRA adapter."""
    return Source(family, f"adapters.{use.name}", use.weights.reference, use.weights.revision)


def first_lines(error: BaseException) -> str:
    """The first two lines of an error, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] if lines else type(error).__name__

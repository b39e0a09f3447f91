"""Provenance of an image: with its seed, path and steps, it is enough to generate the image again."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import weir
from weir.adapters import AdapterUse
from weir.config import FamilyConfig, VariantConfig
from weir.core import Edit
from weir.samplers import Scheduler

#: Packages whose version can change an image.
PACKAGES = ("torch", "diffusers", "transformers")


def made_with(family: FamilyConfig, variant: VariantConfig, sampler: Scheduler | None = None) -> dict[str, str]:
    """Versions of the software, and the weights as ``repository@revision``.

    A repository without a revision gets ``@latest``, because its content may change. A local folder gets ``@local`` and
    its name, without its path.

    Args:
        sampler: the sampler that a request chose; None: the variant's own.
    """
    versions = {"weir": weir.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # the workers may have an environment of their own
            continue
    whole = variant.pipeline is not None
    versions["pipeline"] = _named(variant.pipeline or family.pipeline, variant.revision if whole else family.revision)
    if variant.shares_encoders:
        versions["encoders"] = _named(family.pipeline, family.revision)
    if family.eight_bit_encoders:
        versions["eight_bit_encoders"] = " ".join(family.eight_bit_encoders)
    if file := variant.checkpoint if whole else family.checkpoint:
        versions["checkpoint"] = _named(file, None)
    if variant.unet is not None:
        versions["unet"] = _named(variant.unet, variant.revision) + (
            f"#{variant.unet_file}" if variant.unet_file else ""
        )
    if family.vae is not None:
        versions["vae"] = _named(family.vae, family.vae_revision)
    if family.textual_inversions:
        versions["textual_inversions"] = " ".join(family.textual_inversions)
    return versions | {"scheduler": sampler or variant.scheduler, "dtype": family.dtype}


def made_with_adapters(adapters: Sequence[AdapterUse]) -> dict[str, str]:
    """The adapters of an image with their scales and weights; empty without adapters."""
    named = (
        f"{use}={_named(use.weights.reference, use.weights.revision)}"
        + (f"#{use.weights.file}" if use.weights.file else "")
        for use in adapters
    )
    return {"adapters": " ".join(named)} if adapters else {}


def made_with_inpainting(variant: VariantConfig, edit: Edit | None) -> dict[str, str]:
    """The inpainting pipeline whose UNet generated an edit; empty if the variant's own denoiser did."""
    if variant.inpainting is None or edit is None or edit.mask is None:
        return {}
    return {"inpainting": _named(variant.inpainting, variant.inpainting_revision)}


def _named(reference: str, revision: str | None) -> str:
    path = Path(reference)
    if path.is_absolute() or path.exists():
        return f"{path.name}@local"
    return f"{reference}@{revision or 'latest'}"

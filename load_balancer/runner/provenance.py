"""What an image was generated with: enough to generate it again, together with its seed, path and steps."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import weir
from weir.config import FamilyConfig, VariantConfig

#: Packages whose version can change a pixel.
PACKAGES = ("torch", "diffusers", "transformers")


def made_with(family: FamilyConfig, variant: VariantConfig) -> dict[str, str]:
    """Versions of the software, and the weights as ``repository@revision``.

    A repository without a revision is named ``@latest``, for what it holds may change; a local folder by its name,
    without its place.
    """
    told = {"weir": weir.__version__}
    for package in PACKAGES:
        try:
            told[package] = version(package)
        except PackageNotFoundError:  # a load balancer beside workers of its own environment
            continue
    whole = variant.pipeline is not None
    told["pipeline"] = _named(variant.pipeline or family.pipeline, variant.revision if whole else family.revision)
    if variant.unet is not None:
        told["unet"] = _named(variant.unet, variant.revision) + (f"#{variant.unet_file}" if variant.unet_file else "")
    return told | {"scheduler": variant.scheduler, "dtype": family.dtype}


def _named(reference: str, revision: str | None) -> str:
    path = Path(reference)
    if path.is_absolute() or path.exists():
        return f"{path.name}@local"
    return f"{reference}@{revision or 'latest'}"

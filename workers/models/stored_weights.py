"""Finds a family's weights on this machine without loading them: what is missing, and how many bytes they take."""

from __future__ import annotations

import json
import math
from pathlib import Path

import httpx
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from weir.config import FamilyConfig
from weir.errors import ServiceError
from workers.models.fetch import INDEX, Repository, files_to_fetch, named, parts_of, repositories

#: Timeout of the hub's answer, seconds. Its own library tries for a minute.
HUB_S = 5.0
#: What is small beside the models that it looks at.
_ON_TOP = ("clip", "safety_checker")
#: Parts of pipelines that are not loaded.
_NOT_LOADED = ("safety_checker", "image_encoder")


def missing(family: FamilyConfig) -> list[Repository]:
    """The hub repositories of a family of which nothing is in the hub's cache on this machine."""
    return [it for it in repositories(family) if _folder(it) is None]


def check_available(family: FamilyConfig) -> None:
    """Checks that the weights are on this machine, or that the hub answers, from which they are fetched.

    Raises:
        ServiceError: neither.
    """
    absent = missing(family)
    if not absent:
        return
    problem = "HF_HUB_OFFLINE is set" if hub.HF_HUB_OFFLINE else _hub_problem()
    if problem:
        raise ServiceError(
            f"the weights of {', '.join(it.repository for it in absent)} are not on this machine, and {problem}; run "
            "`weir fetch` on a machine with network access and copy its HF_HOME here"
        )


def _hub_problem() -> str:
    try:
        httpx.head(hub.ENDPOINT, timeout=HUB_S)
    except httpx.HTTPError as error:
        return f"{hub.ENDPOINT} does not answer ({error or type(error).__name__})"
    return ""


def size_bytes(family: FamilyConfig, element_bytes: int) -> int:
    """Bytes of memory that the weights of a replica take at least, with elements of that size.

    Only pipelines and UNets that are on this machine count; judges and activations come on top.
    """
    files = {file for it in named(family) if it.key not in _ON_TOP for file in _files(it)}
    small = family.eight_bit_encoders
    return sum(_elements(file) * (1 if file.parent.name in small else element_bytes) for file in files)


def _folder(it: Repository) -> Path | None:
    """The folder of a repository or of a local reference; None if it is not on this machine."""
    local = Path(it.repository)
    if local.exists():
        return local if local.is_dir() else local.parent
    marker = it.file or (INDEX if it.pipeline else "config.json")
    found = try_to_load_from_cache(it.repository, marker, revision=it.revision)
    return Path(found).parents[marker.count("/")] if isinstance(found, str) else None


def _files(it: Repository) -> list[Path]:
    if Path(it.repository).is_file():
        return [Path(it.repository)]
    folder = _folder(it)
    if folder is None:
        return []
    if it.file:
        return [folder / it.file]
    parts = None
    if it.pipeline:
        parts = [part for part in parts_of(json.loads((folder / INDEX).read_text()), it) if part not in _NOT_LOADED]
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return [folder / file for file in files_to_fetch(there, it.file_set, parts) if file.endswith(".safetensors")]


def _elements(file: Path) -> int:
    with safe_open(file, "numpy") as tensors:
        return sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118

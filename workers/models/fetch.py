"""Downloads a family's weights from the Hugging Face hub to its cache folder (``HF_HOME``): ``weir fetch``.

Downloads only what :mod:`workers.models.weights` loads: safetensors of the file set that the family names, and small
configuration files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from weir.config import FamilyConfig
from weir.errors import ConfigError, ServiceError, WeirError
from weir.own_code import is_own
from workers.models.architectures.registry import ARCHITECTURES, INPAINTING
from workers.models.source import inpainting_key
from workers.models.tensor_files import file_set

INDEX = "model_index.json"
_SMALL = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository of a family.

    Attributes:
        key: key of the family file that names it.
        file: the only file to fetch; None: all files that are needed.
        pipeline: whether the repository holds a pipeline, of which the parts in its index are fetched.
        file_set: the files to fetch, e.g. fp16; None: those without a set in their names.
        lends: whether only the denoiser and the scheduler of the pipeline are needed.
    """

    key: str
    repository: str
    revision: str | None
    file: str | None = None
    pipeline: bool = False
    file_set: str | None = None
    lends: bool = False


def named(family: FamilyConfig) -> list[Repository]:
    """The repositories and local folders that a family loads, each once."""
    found = [Repository("pipeline", family.pipeline, family.revision, pipeline=True, file_set=family.file_set())]
    for key, variant in family.variants.items():
        files = family.file_set(key)
        if variant.pipeline:
            place = f"{key}.pipeline", variant.pipeline, variant.revision
            lends = variant.shares_encoders
            found.append(Repository(*place, pipeline=True, file_set=files, lends=lends))
        if variant.checkpoint:
            found.append(Repository(f"{key}.checkpoint", variant.checkpoint, None))
        if variant.unet:
            found.append(Repository(f"{key}.unet", variant.unet, variant.revision, variant.unet_file, file_set=files))
        if variant.inpainting:
            place = inpainting_key(key), variant.inpainting, variant.inpainting_revision
            found.append(Repository(*place, pipeline=True, file_set=files, lends=True))
    if family.checkpoint:
        found.append(Repository("checkpoint", family.checkpoint, None))
    if family.vae:
        found.append(Repository("vae", family.vae, family.vae_revision))
    if family.clip:
        found.append(Repository("clip", family.clip, family.clip_revision))
    if family.safety_checker and not is_own(family.safety_checker):
        found.append(Repository("safety_checker", family.safety_checker, family.safety_checker_revision))
    uses = [it for it in family.adapter_uses if not it.weights.is_file]
    found += [
        Repository(f"adapters.{it.name}", it.weights.reference, it.weights.revision, it.weights.file) for it in uses
    ]
    own = all(variant.pipeline and not variant.shares_encoders for variant in family.variants.values())
    found = found[1:] if own else found  # the shared pipeline is not loaded if every variant has its own
    places = {(it.repository, it.revision, it.file, it.file_set): it for it in reversed(found)}
    return [it for it in found if it in places.values()]


def repositories(family: FamilyConfig) -> list[Repository]:
    """The hub repositories that a family names, each once. Local paths are left out."""
    return [it for it in named(family) if not Path(it.repository).exists()]


def parts_of(index: Mapping[str, Any], it: Repository) -> list[str]:
    """The parts with files that are needed of a pipeline, by the content of its index."""
    parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[1] is not None]
    name = index.get("_class_name", "")
    architecture = ARCHITECTURES.get(name) or INPAINTING.get(name)
    if not it.lends or architecture is None:
        return parts
    return [name for name in parts if name in (architecture.denoiser_part, "scheduler")]


def files_to_fetch(files: Iterable[str], weights: str | None, parts: Iterable[str] | None = None) -> list[str]:
    """The files of a repository that have to be fetched. Pure.

    Args:
        files: paths in the repository.
        weights: the file set, e.g. fp16; folders without files of the set use their plain files.
        parts: folders to fetch, besides small files of the root; None: files of the root only.
    """
    files = sorted(files)
    folders = {"", *parts} if parts is not None else {""}
    kept = [f for f in files if f.endswith(_SMALL) and f.rpartition("/")[0] in folders]
    for folder in folders if parts is None else folders - {""}:
        names = [name for where, _, name in (f.rpartition("/") for f in files) if where == folder]
        kept += [f"{folder}/{name}".removeprefix("/") for name in file_set(names, weights) or file_set(names, None)]
    return sorted(set(kept))


def fetch(family: FamilyConfig, report: Callable[[str], None]) -> list[Path]:
    """Fetches every repository of a family and shows progress. Files in the cache are not fetched again.

    Args:
        report: called with one line for each repository before it is fetched.

    Returns:
        The folders in the hub's cache.

    Raises:
        ConfigError: a repository, revision or file does not exist, or access to it is denied.
        ServiceError: the hub cannot be reached.
    """
    return [_fetch(it, family.name, report) for it in repositories(family)]


def _fetch(it: Repository, family: str, report: Callable[[str], None]) -> Path:
    where = f"family {family}: {it.key}: {it.repository}" + (f" at revision {it.revision}" if it.revision else "")
    try:
        info = HfApi().model_info(it.repository, revision=it.revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        files = [it.file] if it.file else _files(it, list(sizes))
        if missing := [file for file in files if file not in sizes]:
            raise ConfigError(f"{where}: there is no file {missing[0]}; see the list of files on its page of the hub")
        total = sum(sizes[file] for file in files) / 2**30
        report(f"{it.repository} at {info.sha}: {len(files)} files, {total:.2f} GiB")
        return Path(snapshot_download(it.repository, revision=it.revision, allow_patterns=files))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        closed = isinstance(error, GatedRepoError)
        remedy = "accept its terms on the hub and give a token in HF_TOKEN" if closed else "check name and revision"
        raise ConfigError(f"{where}: {_first_line(error)}; {remedy}") from None
    except WeirError:
        raise
    except Exception as error:  # the hub's HTTP library raises many types
        raise ServiceError(
            f"{where}: the hub does not answer ({_first_line(error)}); try again (complete files are kept), or run "
            "`weir fetch` on a machine with network access and copy its HF_HOME to this machine"
        ) from None


def _files(it: Repository, files: list[str]) -> list[str]:
    parts = None
    if it.pipeline:
        index = json.loads(Path(hf_hub_download(it.repository, INDEX, revision=it.revision)).read_text())
        parts = parts_of(index, it)
    return files_to_fetch(files, it.file_set, parts)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]

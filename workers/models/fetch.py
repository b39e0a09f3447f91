"""Weights from the Hugging Face hub into its cache folder (``HF_HOME``), before anything is served: ``weir fetch``.

Only what :mod:`workers.models.weights` loads: safetensors of the file set that the family names, and small files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from weir.config import FamilyConfig
from weir.errors import ConfigError, ServiceError, WeirError

INDEX = "model_index.json"
_SMALL = (".json", ".txt", ".model")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One repository of a family. ``file``: only this one. ``pipeline``: the parts that its index names."""

    key: str
    repository: str
    revision: str | None
    file: str | None = None
    pipeline: bool = False


def wanted(family: FamilyConfig) -> list[Wanted]:
    """The repositories that a family names, each once; what is a local path is none. Pure, but for looking at paths."""
    found = [Wanted("pipeline", family.pipeline, family.revision, pipeline=True)]
    for key, variant in family.variants.items():
        if variant.pipeline:
            found.append(Wanted(f"{key}.pipeline", variant.pipeline, variant.revision, pipeline=True))
        if variant.unet:
            found.append(Wanted(f"{key}.unet", variant.unet, variant.revision, variant.unet_file))
    if family.clip:
        found.append(Wanted("clip", family.clip, family.clip_revision))
    own = all(variant.pipeline for variant in family.variants.values())
    found = found[1:] if own else found  # nobody loads shared parts that each variant brings itself
    places = {(it.repository, it.revision, it.file): it for it in reversed(found) if not Path(it.repository).exists()}
    return [it for it in found if it in places.values()]


def chosen(files: Iterable[str], weights: str | None, parts: Iterable[str] | None = None) -> list[str]:
    """The files of a repository to fetch. Pure.

    Args:
        files: paths in the repository.
        weights: the file set, e.g. fp16; where a folder has none of it, its plain files are taken.
        parts: folders that count, and the index beside them; None: all files of the root.
    """
    files = sorted(files)
    folders = {"", *parts} if parts is not None else {""}
    kept = [f for f in files if f.endswith(_SMALL) and f.rpartition("/")[0] in folders]
    for folder in folders if parts is None else folders - {""}:
        tensors = [f for f in files if f.endswith(".safetensors") and f.rpartition("/")[0] == folder]
        of_set = [f for f in tensors if weights and f".{weights}." in f.rpartition("/")[2]]
        plain = [f for f in tensors if f.rpartition("/")[2].count(".") == 1]
        kept += of_set or plain
    return sorted(set(kept))


def fetch(family: FamilyConfig, say: Callable[[str], None]) -> list[Path]:
    """Fetches every repository of a family, showing progress; what is there already is not fetched again.

    Args:
        say: called with a line for each repository, before it is fetched.

    Returns:
        The folders in the hub's cache.

    Raises:
        ConfigError: a repository, revision or file does not exist, or is closed to this user.
        ServiceError: the hub cannot be reached.
    """
    return [_fetched(it, family, say) for it in wanted(family)]


def _fetched(it: Wanted, family: FamilyConfig, say: Callable[[str], None]) -> Path:
    where = f"family {family.name}: {it.key}: {it.repository}" + (f" at revision {it.revision}" if it.revision else "")
    try:
        info = HfApi().model_info(it.repository, revision=it.revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        files = [it.file] if it.file else _files(it, family, list(sizes))
        if missing := [file for file in files if file not in sizes]:
            raise ConfigError(f"{where}: there is no file {missing[0]}; the hub's page of it lists what there is")
        total = sum(sizes[file] for file in files) / 2**30
        say(f"{it.repository} at {info.sha}: {len(files)} files, {total:.2f} GiB")
        return Path(snapshot_download(it.repository, revision=it.revision, allow_patterns=files))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        closed = isinstance(error, GatedRepoError)
        remedy = "accept its terms on the hub and give a token in HF_TOKEN" if closed else "check name and revision"
        raise ConfigError(f"{where}: {_first_line(error)}; {remedy}") from None
    except WeirError:
        raise
    except Exception as error:  # whatever the hub's HTTP library raises
        raise ServiceError(
            f"{where}: the hub does not answer ({_first_line(error)}); what was fetched so far is kept, so try again, "
            "or run `weir fetch` on a machine with a network and copy its HF_HOME to here"
        ) from None


def _files(it: Wanted, family: FamilyConfig, files: list[str]) -> list[str]:
    parts = None
    if it.pipeline:
        index = json.loads(Path(hf_hub_download(it.repository, INDEX, revision=it.revision)).read_text())
        parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[1] is not None]
    return chosen(files, family.weights, parts)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]

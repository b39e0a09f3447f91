"""Keeps the adapters of a replica: loaded when they are first used, within a bound of memory."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from weir.adapters import AdapterUse, AdapterWeights
from weir.config import FamilyConfig
from workers.models.architectures.architecture import Architecture
from workers.models.lora.adapter_file import (
    LowRank,
    Updates,
    adapter_path,
    check_fit,
    read_updates,
    stored_elements,
)
from workers.models.lora.adapter_header import check_taken
from workers.models.source import Source, adapter_source

log = logging.getLogger(__name__)

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter.

    Attributes:
        id: hash of its file.
        updates: on the device, in the precision of the models.
    """

    id: str
    updates: Updates
    size_bytes: int


class Scaled(NamedTuple):
    """An adapter with its scale."""

    adapter: Adapter
    scale: float


#: The adapters of one image.
AdapterSet: TypeAlias = tuple[Scaled, ...]


class AdapterStore:
    """The adapters of a family. Its methods may be called from any thread; images of other adapters never wait.

    An adapter that had to make room stays in memory until the images that use it are finished.
    """

    def __init__(self, family: FamilyConfig, models: Mapping[str, Architecture], device: torch.device):
        self._family = family
        self._models = models
        self._model = next(iter(models.values()))  # the others convert names the same way
        self._device = device
        self._bound = family.adapters_mib * MEBIBYTE
        self._fetched: dict[AdapterWeights, Path] = {}
        self._known: OrderedDict[tuple[object, ...], Future[Adapter]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Memory of the adapters that are kept."""
        with self._lock:
            return sum(it.result().size_bytes for it in self._known.values() if _is_there(it))

    def check(self, use: AdapterUse) -> None:
        """Checks an adapter by the header of its file.

        Raises:
            ConfigError: names the adapter, what is wrong with it, and the remedy.
        """
        source = adapter_source(self._family.name, use)
        self._check(source, adapter_path(source, use))

    def load(self, uses: Sequence[AdapterUse]) -> AdapterSet:
        """The adapters of an image; loads those that are not here.

        Raises:
            ConfigError: names the adapter, what is wrong with it, and the remedy.
        """
        return tuple(Scaled(self._adapter(use), use.scale) for use in uses)

    def _adapter(self, use: AdapterUse) -> Adapter:
        source = adapter_source(self._family.name, use)
        path = self._path(source, use)
        key = (path, *_version(source, path))
        with self._lock:
            future = self._known.get(key)
            if is_new := future is None:
                future = self._known[key] = Future()
            self._known.move_to_end(key)
        if is_new:
            try:
                future.set_result(self._read(source, path))
            except BaseException as error:
                with self._lock:
                    del self._known[key]
                future.set_exception(error)
            self._make_room(key)
        return future.result()

    def _path(self, source: Source, use: AdapterUse) -> Path:
        """The file of an adapter; the hub is asked once."""
        if source.folder is not None:
            return adapter_path(source, use)
        if use.weights not in self._fetched:
            self._fetched[use.weights] = adapter_path(source, use)
        return self._fetched[use.weights]

    def _read(self, source: Source, path: Path) -> Adapter:
        self._check(source, path)
        updates = read_updates(source, path, self._model)
        with path.open("rb") as file:
            id = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=6)).hexdigest()
        dtype = self._model.denoiser.dtype

        def moved(update: LowRank) -> LowRank:
            return LowRank(*(it.to(self._device, dtype).contiguous() for it in update))

        placed = {part: {name: moved(it) for name, it in own.items()} for part, own in updates.items()}
        tensors = [tensor for own in placed.values() for update in own.values() for tensor in update]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise source.error("it has values that are not finite numbers", "fetch or write it again")
        size = sum(tensor.nbytes for tensor in tensors)
        log.info("Loaded the adapter %s: %.1f MiB", path.name, size / MEBIBYTE)
        return Adapter(id, placed, size)

    def _check(self, source: Source, path: Path) -> None:
        """Checks by its header that an adapter fits every variant, and the bound.

        Raises:
            ConfigError: names the layer.
        """
        check_taken(source, type(self._model))
        size = stored_elements(source, path) * self._model.denoiser.dtype.itemsize
        if size > self._bound:
            what = f"it takes {size / MEBIBYTE:.0f} MiB, and adapters_mib is {self._family.adapters_mib}"
            raise source.error(what, "raise adapters_mib in the family file")
        updates = read_updates(source, path, self._model, values=False)
        for key, model in self._models.items():
            for part, own in updates.items():
                module = getattr(model.pipeline, part, None)
                if module is None:
                    raise source.error(f"it changes the {part}, which {key} does not have", "use another adapter")
                shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
                check_fit(source, layers_of(module, own), f"{part} of {key}", shapes)

    def _make_room(self, newest: tuple[object, ...]) -> None:
        """Forgets the adapters that were not used for longest, until the others fit the bound."""
        while self.size_bytes > self._bound:
            with self._lock:
                oldest = next((key for key, it in self._known.items() if key != newest and _is_there(it)), None)
                if oldest is None:
                    return
                del self._known[oldest]


def layers_of(module: torch.nn.Module, updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Updates by the names of a module's layers: transformers' text encoders may have the prefix ``text_model.``."""
    if hasattr(module, "text_model"):
        return dict(updates)
    return {name.removeprefix("text_model."): update for name, update in updates.items()}


def _version(source: Source, path: Path) -> tuple[int, int]:
    """Time of the last change and size of a file; one that was replaced is loaded again.

    Raises:
        ConfigError: it is gone.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise source.error(f"it cannot be read: {error.strerror}", "put it back, or remove the adapter") from None
    return found.st_mtime_ns, found.st_size


def _is_there(future: Future[Adapter]) -> bool:
    return future.done() and future.exception() is None


def model_id(model: str, adapters: AdapterSet) -> str:
    """Identifies what a state was made by: a model with its adapters and their scales."""
    return model + "".join(f"+{adapter.id}*{scale:g}" for adapter, scale in adapters)

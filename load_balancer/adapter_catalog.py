"""The LoRA adapters of a running service: those of its family file, and what administrators added and removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from weir.adapters import AdapterWeights
from weir.errors import Conflict, NotFound


class AdapterCatalog(Mapping[str, AdapterWeights]):
    """Weights by name, in alphabetical order. Lives on the event loop of a load balancer.

    Args:
        configured: those of the family file.
    """

    def __init__(self, configured: Mapping[str, AdapterWeights]):
        self._configured = dict(configured)
        self._added: dict[str, AdapterWeights] = {}
        self._removed: set[str] = set()

    def __getitem__(self, name: str) -> AdapterWeights:
        return self._current[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._current))

    def __len__(self) -> int:
        return len(self._current)

    @property
    def _current(self) -> dict[str, AdapterWeights]:
        return {name: it for name, it in self._configured.items() if name not in self._removed} | self._added

    def check_new(self, name: str) -> None:
        """Checks that a name is free.

        Raises:
            Conflict: an adapter has it.
        """
        if name in self:
            raise Conflict(f"there is an adapter {name} already; remove it first, or choose another name")

    def add(self, name: str, weights: AdapterWeights) -> None:
        """Adds an adapter for the requests from now on.

        Raises:
            Conflict: an adapter has this name; nothing changed.
        """
        self.check_new(name)
        self._added[name] = weights

    def remove(self, name: str) -> None:
        """Removes an adapter; requests that were admitted with it are finished with it.

        Raises:
            NotFound: there is none of this name; nothing changed.
        """
        if name not in self:
            raise NotFound(f"there is no adapter {name[:64]!r}; there are {', '.join(self) or 'none'}", param="name")
        self._added.pop(name, None)
        if name in self._configured:
            self._removed.add(name)

    def to_dict(self) -> dict[str, Any]:
        """What administrators changed, as JSON."""
        return {"added": {name: asdict(it) for name, it in self._added.items()}, "removed": sorted(self._removed)}

    def follow(self, fields: Mapping[str, Any]) -> None:
        """Takes in what another load balancer's :meth:`to_dict` has written."""
        self._added = {name: AdapterWeights(**it) for name, it in fields.get("added", {}).items()}
        self._removed = set(fields.get("removed", ()))

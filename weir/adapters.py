"""LoRA adapters: what a request uses of them, and where their weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Pattern of an adapter's name, which is part of requests, of the cache's keys and of answers.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
#: Largest number of adapters of one request.
MOST_ADAPTERS = 8
#: Largest scale and, negative, the smallest.
MOST_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """Where the weights of an adapter are.

    Attributes:
        reference: absolute path of a safetensors file, or the name of a hub repository.
        revision: of the repository; None: the latest.
        file: name of the safetensors file in the repository; None: ``reference`` is a file.
    """

    reference: str
    revision: str | None = None
    file: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether they are a local file."""
        return self.reference.startswith("/")


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that an image is generated with.

    Attributes:
        name: as requests name it.
        scale: factor of its updates of the weights; 1: as it was trained.
        weights: where they are; a worker needs no list of names.
    """

    name: str
    scale: float
    weights: AdapterWeights

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> AdapterUse:
        """Reads what :func:`dataclasses.asdict` wrote.

        Raises:
            TypeError: a field is unknown or missing.
        """
        return cls(**{**given, "weights": AdapterWeights(**given["weights"])})

    def __str__(self) -> str:
        return f"{self.name}*{self.scale:g}"

"""Partitions: a state may be reused by the same tenant, for a run that differs in nothing but the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from weir.adapters import AdapterUse
from weir.config import FamilyConfig
from weir.core import ImageSize
from weir.prompts import PromptSyntax
from weir.samplers import Scheduler


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a request that determine its partition, besides the tenant; None: the family's default."""

    size: ImageSize
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    sampler: Scheduler | None = None
    prompt_syntax: PromptSyntax = "plain"
    adapters: tuple[AdapterUse, ...] = ()

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Settings:
        """Settings from plain data, with the size as ``WIDTHxHEIGHT``.

        Raises:
            KeyError, TypeError, ValueError: a field is unknown, missing or of another type.
        """
        adapters = tuple(AdapterUse.from_dict(it) for it in given.get("adapters", ()))
        return cls(**{**given, "size": ImageSize.of(given["size"]), "adapters": adapters})


class Partitions:
    """The partitions of one family and one encoder.

    A partition's name is part of every key: tenant, model and revision, scheduler, shape, steps, guidance, negative
    prompt, dtype, encoder, the prompts' syntax unless it is plain, adapters with their scales. Workers also check a
    state against their model.
    """

    def __init__(self, family: FamilyConfig, encoder: str):
        heavy = family.heavy
        revision = heavy.revision or family.revision or "local"
        self._family = family
        self._model = f"{heavy.name}@{revision}" + "".join(f"+{part}-8bit" for part in family.eight_bit_encoders)
        self._encoder = encoder

    def name(self, tenant: str, settings: Settings) -> str:
        """The name of a partition: readable, and without the special characters of keys and patterns."""
        heavy = self._family.heavy
        steps = heavy.steps if settings.steps is None else settings.steps
        guidance = heavy.guidance if settings.guidance is None else settings.guidance
        parts = (
            f"{self._model}|{settings.sampler or heavy.scheduler}",
            str(settings.size),
            f"{steps}",
            f"{guidance:g}",
            _digest(settings.negative_prompt) if settings.negative_prompt else "-",
            "fp16",
            self._encoder,
            *(() if settings.prompt_syntax == "plain" else (settings.prompt_syntax,)),
            *(f"{use}@{_digest(repr(use.weights))}" for use in settings.adapters),
        )
        return self.prefix(tenant) + "|".join(quote(part, safe="|@") for part in parts)

    @staticmethod
    def prefix(tenant: str) -> str:
        """The common prefix of the names of a tenant's partitions."""
        return quote(tenant, safe="") + "|"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

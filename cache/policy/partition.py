"""Who may reuse a state: the same tenant, and a run that is like it in everything but the prompt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import quote

from weir.config import FamilyConfig


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a request decides its partition, besides the tenant; None means what the family says."""

    width: int
    height: int
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str = ""


class Partitions:
    """The partitions of one family and one encoder.

    A partition's name is part of every key: tenant, model and revision, scheduler, shape, steps, guidance, negative
    prompt, dtype, encoder. Workers check the state itself against their model once more.
    """

    def __init__(self, family: FamilyConfig, encoder: str):
        heavy = family.heavy
        revision = heavy.revision or family.revision or "local"
        self._family = family
        self._model = f"{heavy.name}@{revision}|{heavy.scheduler}"
        self._encoder = encoder

    def name(self, tenant: str, settings: Settings) -> str:
        """Readable, and without the characters that keys and patterns are made of."""
        heavy = self._family.heavy
        steps = heavy.steps if settings.steps is None else settings.steps
        guidance = heavy.guidance if settings.guidance is None else settings.guidance
        negative = hashlib.blake2b(settings.negative_prompt.encode(), digest_size=6).hexdigest()
        parts = (
            self._model,
            f"{settings.width}x{settings.height}",
            f"{steps}",
            f"{guidance:g}",
            negative if settings.negative_prompt else "-",
            "fp16",
            self._encoder,
        )
        return self.prefix(tenant) + "|".join(quote(part, safe="|@") for part in parts)

    @staticmethod
    def prefix(tenant: str) -> str:
        """What the names of all partitions of a tenant begin with."""
        return quote(tenant, safe="") + "|"

"""The field ``loras`` of a request: LoRA adapters by name, each with a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from weir.adapters import MOST_ADAPTERS, MOST_SCALE, AdapterUse, AdapterWeights
from weir.errors import InvalidRequest

FIELD = "loras"
_SCALE = {"type": "number", "minimum": -MOST_SCALE, "maximum": MOST_SCALE}


class LoraBody(BaseModel):
    """A LoRA adapter of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    scale: float | None = None


class LoraRules:
    """Reads and checks the field.

    Args:
        adapters: weights of the adapters by name. An administrator may change them while the service runs.
    """

    def __init__(self, adapters: Mapping[str, AdapterWeights]):
        self._adapters = adapters

    @property
    def accepted(self) -> str:
        """What the field accepts, in words."""
        if not self._adapters:
            return "an empty list; this service has no adapters"
        return (
            f"a list of at most {MOST_ADAPTERS} objects with the name of an adapter ({' or '.join(self._adapters)}) "
            f"and, optional, its scale, a number from {-MOST_SCALE:g} to {MOST_SCALE:g}"
        )

    def read(self, loras: Sequence[LoraBody]) -> tuple[AdapterUse, ...]:
        """The adapters of a request. One that is named twice has the sum of its scales.

        Raises:
            InvalidRequest: there is no such adapter, or their number or a scale is out of range.
        """
        if len(loras) > MOST_ADAPTERS:
            raise self._refusal(f"has {len(loras)} entries")
        scales: dict[str, float] = {}
        for lora in loras:
            scale = 1.0 if lora.scale is None else lora.scale
            if lora.name not in self._adapters:
                raise self._refusal(f"has the unknown name {lora.name[:64]!r}")
            if abs(scale) > MOST_SCALE:
                raise self._refusal(f"has the scale {scale:g}")
            scales[lora.name] = scales.get(lora.name, 0.0) + scale
        return tuple(AdapterUse(name, scales[name], self._adapters[name]) for name in sorted(scales))

    def described(self) -> dict[str, Any]:
        """JSON schema of the field, which accepts what :meth:`read` accepts."""
        lists = self._list_with({"anyOf": [_SCALE, {"type": "null"}]})
        return {"anyOf": [lists, {"type": "null"}], "default": None, "description": self.accepted}

    def described_in_form(self) -> dict[str, Any]:
        """The same for a form, which has no null, and lists as JSON."""
        return {**self._list_with(_SCALE), "description": f"{self.accepted}, as JSON"}

    def _list_with(self, scale: dict[str, Any]) -> dict[str, Any]:
        name = {"type": "string", **({"enum": list(self._adapters)} if self._adapters else {})}
        properties = {"name": name, "scale": scale}
        item = {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}
        return {"type": "array", "items": item, "maxItems": MOST_ADAPTERS if self._adapters else 0}

    def _refusal(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"{FIELD} {problem}; accepted: {self.accepted}", param=FIELD)

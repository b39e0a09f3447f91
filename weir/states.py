"""Denoising states, from which later requests resume, and the interface of their store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from weir.core import ImageRequest
from weir.errors import StateRefused
from weir.json_files import parsed_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Version of the layout of stored states and records. It is part of their keys and of every tagged value, and grows
#: with every change; values of another version are refused.
FORMAT = 1
#: Prefix of the keys of this version.
PREFIX = f"weir:{FORMAT}:"
#: Shares of a whole run at whose steps states are captured (NIRVANA: steps 5, 10, 15, 20 and 25 of 50).
CAPTURE_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


def capture_steps(steps: int) -> tuple[int, ...]:
    """The captured steps of a run of ``steps`` steps, in ascending order and without 0."""
    return tuple(sorted({round(share * steps) for share in CAPTURE_SHARES} - {0}))


def state_key(partition: str, entry: str, step: int) -> str:
    """The key of a captured state.

    Args:
        partition: of the request whose run produced the state (:attr:`weir.core.ImageRequest.capture`).
        entry: id of that request. Ids are unique, so no two states share a key.
        step: K, the step that the state enters.
    """
    return f"{PREFIX}{partition}:{entry}:{step}"


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The latent that enters a step of a run, and the properties that a resuming run must share.

    Attributes:
        latent: float16 [C, H/f, W/f], on the host.
        step: 0…``steps``; ``steps`` is the finished latent.
        sampler: solver, noise schedule and prediction type (:attr:`workers.engine.samplers.Sampler.id`).
        model: variant and revision that produced it.
    """

    latent: npt.NDArray[np.float16]
    step: int
    steps: int
    sampler: str
    model: str

    def to_bytes(self) -> bytes:
        """Serializes the state as safetensors, with the other fields as metadata."""
        from safetensors.numpy import save

        fields = {"step": str(self.step), "steps": str(self.steps), "sampler": self.sampler, "model": self.model}
        return save({"latent": self.latent}, metadata=fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Reads what :meth:`to_bytes` wrote.

        Raises:
            StateRefused: the bytes are damaged, or are not a state.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            latent = load(data)["latent"]
            fields = parsed_json(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            return cls(latent, int(fields["step"]), int(fields["steps"]), fields["sampler"], fields["model"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise StateRefused(f"not a stored state: {type(error).__name__}: {error}") from None


class StateStore(Protocol):
    """Stores states. Workers call it from several threads at a time, and tolerate all exceptions.

    An implementation has time limits of its own; a worker waits at most 20 ms for :meth:`get`.
    """

    def get(self, key: str) -> State | None:
        """The state, or None when the store does not have it."""
        ...

    def put(self, request: ImageRequest, states: Sequence[State]) -> None:
        """Stores the states of a finished request, each under its :func:`state_key`; none without a partition."""
        ...

    def show(self) -> None:
        """Records the metrics of the store. It is called every second and must not block."""
        ...

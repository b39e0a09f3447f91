"""Denoising states: what a worker keeps of a run so that a later request can go on from there, and where it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from weir.core import ImageRequest
from weir.errors import StateRefused

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Of stored states and records: a part of their keys, and of every sealed value. It grows with every change of the
#: layout; values of another format are refused.
FORMAT = 1
#: Begins the keys of this format.
PREFIX = f"weir:{FORMAT}:"
#: Of a full run, the steps whose entering states are kept (NIRVANA keeps them at 5, 10, 15, 20 and 25 of 50).
CAPTURE_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


def capture_steps(steps: int) -> tuple[int, ...]:
    """The steps of a run of ``steps`` that are captured: the same shares of every run, ascending, none of them 0."""
    return tuple(sorted({round(share * steps) for share in CAPTURE_SHARES} - {0}))


def state_key(partition: str, entry: str, step: int) -> str:
    """The key of a captured state.

    Args:
        partition: of the request whose run passed it (:attr:`weir.core.ImageRequest.capture`).
        entry: id of that request. Ids are unique, so no two states share a key.
        step: K, which it enters.
    """
    return f"{PREFIX}{partition}:{entry}:{step}"


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The latent that enters one step of a run, and what a run has to be like to go on from it.

    Attributes:
        latent: float16 [C, H/f, W/f], on the host.
        step: 0…``steps``; ``steps`` is the finished latent.
        sampler: solver, noise schedule and prediction type (:attr:`workers.engine.samplers.Sampler.id`).
        model: variant and revision that made it.
    """

    latent: npt.NDArray[np.float16]
    step: int
    steps: int
    sampler: str
    model: str

    def to_bytes(self) -> bytes:
        """Safetensors with the other fields as metadata: no pickle, ever."""
        from safetensors.numpy import save

        fields = {"step": str(self.step), "steps": str(self.steps), "sampler": self.sampler, "model": self.model}
        return save({"latent": self.latent}, metadata=fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Reads what :meth:`to_bytes` wrote.

        Raises:
            StateRefused: the bytes are damaged or not a state.
        """
        import json

        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            latent = load(data)["latent"]
            fields = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            return cls(latent, int(fields["step"]), int(fields["steps"]), fields["sampler"], fields["model"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise StateRefused(f"not a stored state: {type(error).__name__}: {error}") from None


class StateStore(Protocol):
    """Where states are kept. Workers call it from threads, several at a time, and survive whatever it raises.

    An implementation has time limits of its own; a worker waits for :meth:`get` no longer than 20 ms.
    """

    def get(self, key: str) -> State | None:
        """The state, or None when it is not there (any more)."""
        ...

    def put(self, request: ImageRequest, states: Sequence[State]) -> None:
        """Keeps the states of one finished request, each under its :func:`state_key`; a request without a
        partition to capture them in keeps none."""
        ...

    def show(self) -> None:
        """Tells the metrics how the store is; called every second, asks nothing and waits for nothing."""
        ...

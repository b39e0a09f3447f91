"""An emulated service whose heavy variant a test holds up, breaks and lets go, and whose requests it can read."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from load_balancer.runner.generation_request import GenerationRequest
from testing.toy_family import FAMILY, PROFILE
from tests.load_balancer.local_service import LocalService
from weir.core import NO_LOOKUP, CacheLookup, ImageRequest, ImageResult
from weir.errors import GenerationFailed, WeirError
from weir.plan import HEAVY, Plan
from weir.profiles import Profile
from workers.emulated import EmulatedEngine

PLAN = Plan.split(1, 1, 1, light_batch=4, heavy_batch=4, threshold=0.5)
STEPWISE = {"step_s": [1e-4, 1e-4], "fixed": {"text_s": 0, "decode_s": 0}}
#: Arbitrary times: a gate controls when the heavy variant continues.
DOUBTFUL = Profile.model_validate(
    {**PROFILE, "heavy": {**PROFILE["heavy"], **STEPWISE}, "confidences": [0.25]}  # below the plan's threshold
)
#: A square, a smaller one, a landscape, and any other size within limits.
SIZED = {
    **FAMILY,
    "sizes": [32, "96x64"],
    "samplers": ["dpmpp-2m-karras"],
    "any_size": {"multiple": 8, "least_side": 30, "most_side": 128, "pixels": 96 * 96},
}
PATIENCE_S = 60
#: Id of the request that a replica sends itself after a failure; a replica that fails it is replaced.
SELF_TEST = "self-test"


class Gated(EmulatedEngine):
    """The heavy variant waits at each step in :attr:`stops` until its gate is open, and fails while it is broken."""

    def __init__(self) -> None:
        super().__init__(DOUBTFUL)
        self.gate = threading.Event()
        self.stops = {0, 30}
        self.broken = False

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        if samples[0].job.recipe.variant == HEAVY and samples[0].step in self.stops:
            self.gate.wait(PATIENCE_S)
            if self.broken and all(sample.job.request.id != SELF_TEST for sample in samples):
                return [GenerationFailed("the denoiser is broken")] * len(samples)
        return super().step(samples)


class EmptyCache:
    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    async def find(self, request: ImageRequest) -> CacheLookup:
        return NO_LOOKUP

    def finished(self, image: str, result: ImageResult | None, sought: int) -> None:
        pass


def recorded(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    seen: list[GenerationRequest] = []
    begin = service.balancer.begin

    def noting(request: GenerationRequest, *, again: bool = False) -> Any:
        seen.append(request)
        return begin(request, again=again)

    monkeypatch.setattr(service.balancer, "begin", noting)
    return seen


def open_gates(engines: list[Gated]) -> None:
    for engine in engines:
        engine.gate.set()


def close_gates(engines: list[Gated]) -> None:
    for engine in engines:
        engine.gate.clear()

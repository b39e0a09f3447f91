"""Several light variants before one heavy one, on one device: each call goes to the engine that holds the variant."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from weir.core import ImageRequest, Role
from weir.errors import WeirError
from weir.states import State
from workers.engine.engine import DenoiseJob, Engine, EngineOutput, Sample


class Call(NamedTuple):
    """What images have in common that can share a call: the light variant (None: the family's own), and what its engine
    says."""

    light: str | None
    inner: Hashable


class LightVariants:
    """Implements :class:`workers.engine.engine.Engine`.

    Args:
        own: the family's engine, which also draws every heavy image.
        others: by the name of their light variant; only that is asked of them.
    """

    def __init__(self, own: Engine, others: Mapping[str, Engine]):
        self._own = own
        self._others = others

    @property
    def emulated(self) -> bool:
        return self._own.emulated

    @property
    def beat(self) -> float:
        return max(engine.beat for engine in (self._own, *self._others.values()))

    def _of(self, role: Role, request: ImageRequest) -> Engine:
        return self._own if role is Role.HEAVY else self._others.get(request.light or "", self._own)

    def _of_order(self, order: DenoiseJob) -> Engine:
        return self._of(order.recipe.role, order.request)

    def call_of(self, order: DenoiseJob) -> Hashable:
        light = order.request.light if order.recipe.role is Role.LIGHT else None
        return Call(light, self._of_order(order).call_of(order))

    def check(self, order: DenoiseJob) -> None:
        self._of_order(order).check(order)

    def begin(self, orders: Sequence[DenoiseJob]) -> Sequence[Sample | WeirError]:
        return self._of_order(orders[0]).begin(orders)

    def step(self, samples: Sequence[Any]) -> Sequence[WeirError | None]:
        return self._of_order(samples[0].order).step(samples)

    def finish(self, samples: Sequence[Any]) -> Sequence[Future[EngineOutput]]:
        return self._of_order(samples[0].order).finish(samples)

    def preview(self, sample: Any) -> bytes | None:
        return self._of_order(sample.order).preview(sample)

    def warm_up(self, batch_size: int, roles: Sequence[Role] = tuple(Role)) -> None:
        self._own.warm_up(batch_size, roles)
        for engine in self._others.values():
            engine.warm_up(batch_size, [role for role in roles if role is Role.LIGHT])

    def probe(self) -> None:
        self._own.probe()

    def generate(
        self, role: Role, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        return self._of(role, requests[0]).generate(role, requests, starts)

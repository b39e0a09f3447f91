"""An order on its way: what of it is there already, for anybody who looks, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from load_balancer.runner.cache_client import CacheLookup
from load_balancer.runner.generation_request import GenerationRequest
from weir.core import ImageResult, Path, Role
from weir.errors import Cancelled


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A picture that another one will replace.

    Attributes:
        index: which of the order's images.
        image: PNG.
        role: the variant that drew it.
        step: denoising steps behind it.
    """

    index: int
    image: bytes
    role: Role
    step: int


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished image and how it came about. ``queue_s`` and ``compute_s`` sum over the stages it went through.

    ``reuse`` is what the cache had for it; None where it was not asked. ``anew`` is the run from noise that followed a
    resumed one which the discriminator doubted, whichever of the two is the answer. ``made_with`` names software and
    weights.
    ``confidence`` is the discriminator's in the light image, ``heavy_confidence`` in the heavy one; None where nobody
    judged it. The heavy one is the best of ``draws``; 0 where the light one is the answer.
    """

    result: ImageResult
    path: Path
    model: str
    seed: int
    confidence: float | None
    queue_s: float
    compute_s: float
    latency_s: float
    plan_version: int
    made_with: dict[str, str]
    reuse: CacheLookup | None = None
    anew: ImageResult | None = None
    index: int = 0
    draws: int = 0
    heavy_confidence: float | None = None


Event = PartialImage | GeneratedImage
#: Draws one image of an order; pictures on the way go to the function.
Generate = Callable[[int, Callable[[PartialImage], None]], Awaitable[GeneratedImage]]


class GenerationTask:
    """Draws all images of an order, or none: it goes on whether or not anybody looks, until :meth:`close`.

    Args:
        ids: of its images, unique among all images ever.
        draw: called once for each image, at once.
        ended: called once, when no work is left.
    """

    def __init__(self, order: GenerationRequest, ids: tuple[str, ...], draw: Generate, ended: Callable[[], None]):
        self.order = order
        self.ids = ids
        self._draw = draw
        self._ended = ended
        self._events: list[Event] = []
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._left = order.n
        self._tasks = [asyncio.create_task(self._one(index)) for index in range(order.n)]
        for task in self._tasks:
            task.add_done_callback(self._gone)

    async def events(self) -> AsyncIterator[Event]:
        """What there was so far, then what comes, up to the last finished image.

        Raises:
            WeirError: an image failed; the work on the others is cancelled.
            Cancelled: somebody closed it.
        """
        seen = finished = 0
        while finished < self.order.n:
            while seen < len(self._events):
                event = self._events[seen]
                seen += 1
                finished += isinstance(event, GeneratedImage)
                yield event
            if finished == self.order.n:
                return
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    async def images(self) -> list[GeneratedImage]:
        """All finished images, in the order of their seeds.

        Raises:
            WeirError: as :meth:`events`.
        """
        drawn = [event async for event in self.events() if isinstance(event, GeneratedImage)]
        return sorted(drawn, key=lambda one: one.index)

    async def close(self) -> None:
        """Cancels what is still being drawn; returns when it is over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    @property
    def begun(self) -> bool:
        """Whether there is a picture already."""
        return bool(self._events)

    @property
    def size_bytes(self) -> int:
        """Of the pictures that it holds."""
        return sum(len(e.image if isinstance(e, PartialImage) else e.result.image) for e in self._events)

    @property
    def over(self) -> bool:
        """Whether no work is left."""
        return self._left == 0

    async def _one(self, index: int) -> None:
        self._tell(await self._draw(index, self._tell))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _gone(self, task: asyncio.Task[None]) -> None:
        """An image is finished, or failed and takes the others with it."""
        error = Cancelled("the request was cancelled") if task.cancelled() else task.exception()
        if error is not None and self._error is None:
            self._error = error
            for other in self._tasks:
                other.cancel()
            self._wake()
        self._left -= 1
        if self._left == 0:
            self._ended()

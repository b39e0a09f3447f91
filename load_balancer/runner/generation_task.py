"""Progress and result of one running request, observable by several readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from load_balancer.runner.generation_request import GenerationRequest
from weir.core import NO_LOOKUP, CacheLookup, ImageResult
from weir.errors import Cancelled


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An intermediate image, which a later one will replace.

    Attributes:
        index: index of the image in the request.
        image: PNG.
        variant: key of the variant that generates it.
        step: number of denoising steps that have run.
    """

    index: int
    image: bytes
    variant: str
    step: int


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished image, and how it was generated.

    Attributes:
        path: see :attr:`weir.cascade.Answer.path`.
        variant: key of the variant that generated it.
        model: name of that variant.
        confidence: the discriminator's confidence in the last image of a variant before the last one; None if none was
            judged.
        heavy_confidence: the discriminator's confidence in this image, if it is of the last variant and was judged.
        draws: number of images of the last variant; an answer of that variant is the best of them.
        queue_s, compute_s: sums over all runs.
        made_with: versions of the software, and the weights.
        lookup: result of the cache lookup; :data:`weir.core.NO_LOOKUP` without one.
        index: index of the image in the request.
    """

    result: ImageResult
    path: str
    variant: str
    model: str
    seed: int
    confidence: float | None
    heavy_confidence: float | None
    draws: int
    queue_s: float
    compute_s: float
    latency_s: float
    plan_version: int
    made_with: dict[str, str]
    lookup: CacheLookup = NO_LOOKUP
    index: int = 0


Event = PartialImage | GeneratedImage
#: Generates the image with an index of a request, and calls the function with intermediate images.
Generate = Callable[[int, Callable[[PartialImage], None]], Awaitable[GeneratedImage]]


class GenerationTask:
    """Generates all images of a request, or none. The work continues without readers, until :meth:`close`.

    Args:
        ids: ids of the images, never reused.
        generate: called once for each image when the task is created.
        ended: called once, when all work has ended.
    """

    def __init__(self, request: GenerationRequest, ids: tuple[str, ...], generate: Generate, ended: Callable[[], None]):
        self.request = request
        self.ids = ids
        self._generate = generate
        self._ended = ended
        self._events: list[Event] = []
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._left = request.n
        self._tasks = [asyncio.create_task(self._one(index)) for index in range(request.n)]
        for task in self._tasks:
            task.add_done_callback(self._gone)

    async def events(self) -> AsyncIterator[Event]:
        """Yields all events so far, then those that follow, up to the last finished image.

        Raises:
            WeirError: an image failed; the work on the others is cancelled.
            Cancelled: the task was closed.
        """
        seen = finished = 0
        while finished < self.request.n:
            while seen < len(self._events):
                event = self._events[seen]
                seen += 1
                finished += isinstance(event, GeneratedImage)
                yield event
            if finished == self.request.n:
                return
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    async def images(self) -> list[GeneratedImage]:
        """Waits for all finished images, and returns them in the order of their seeds.

        Raises:
            WeirError: as :meth:`events`.
        """
        images = [event async for event in self.events() if isinstance(event, GeneratedImage)]
        return sorted(images, key=lambda one: one.index)

    async def close(self) -> None:
        """Cancels the remaining work, and returns when it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    @property
    def begun(self) -> bool:
        """Whether there is an image already, intermediate or finished."""
        return bool(self._events)

    @property
    def size_bytes(self) -> int:
        """Size of all its images."""
        return sum(len(e.image if isinstance(e, PartialImage) else e.result.image) for e in self._events)

    @property
    def over(self) -> bool:
        """Whether all work has ended."""
        return self._left == 0

    async def _one(self, index: int) -> None:
        self._add(await self._generate(index, self._add))

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _gone(self, task: asyncio.Task[None]) -> None:
        """Handles the end of one image's work: a failure cancels the work on the other images."""
        error = Cancelled("the request was cancelled") if task.cancelled() else task.exception()
        if error is not None and self._error is None:
            self._error = error
            for other in self._tasks:
                other.cancel()
            self._wake()
        self._left -= 1
        if self._left == 0:
            self._ended()

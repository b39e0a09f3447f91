"""ShadowSamples samples: a prompt of late, drawn again at every level of a ladder while there is little else to do.

Only so can a level classifier be held against what its levels really lose. Prompts are kept in memory, a few, and only
where the configuration asks for shadow samples. Their images go to nobody but whoever judges them, and nothing of them
enters a cache.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from load_balancer.http.api_keys import Caller
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.core import Role
from weir.errors import WeirError

#: Prompts that are remembered; the oldest leaves first.
RECENT = 64
#: Images that may be saved up for: what a quiet night allows is not drawn in one go in the morning.
MOST_CREDIT = 20.0
#: Share of the replicas that images in flight may occupy while a sample begins an image.
QUIET = 0.25
#: The lowest priority there is; one image at a time.
CALLER = Caller("shadow", "weir-shadow", priority="batch")


@dataclass(frozen=True, slots=True)
class ShadowSample:
    """One prompt's images (PNG), one for each level that was asked for, all of one seed; and the discriminator's
    confidence in the light one."""

    prompt: str
    images: tuple[bytes, ...]
    confidence: float


class ShadowSamples:
    """Remembers prompts, and which share of the images may be drawn again.

    Args:
        share: images of samples over images that were asked for; 0 remembers nothing.
        size: side of the family's own images; orders of other sizes are not sampled, nor those that set anything that a
            level would change.
        random: chooses prompts and seeds.
    """

    def __init__(self, share: float, size: int, random: random.Random):
        self._share = share
        self._size = size
        self._random = random
        self._prompts: list[str] = []
        self._credit = 0.0

    def note(self, order: GenerationRequest) -> None:
        """An order was admitted."""
        if not self._share or order.caller is CALLER:
            return
        self._credit = min(MOST_CREDIT, self._credit + self._share * order.n)
        plain = order.role is None and order.steps is None and order.guidance is None and not order.negative_prompt
        if plain and (order.width, order.height) == (self._size, self._size):
            self._prompts = [*self._prompts[1 - RECENT :], order.prompt]

    async def sample(
        self,
        levels: Sequence[tuple[Role, int]],
        draw: Callable[[GenerationRequest], Awaitable[list[GeneratedImage]]],
        quiet: Callable[[], bool],
    ) -> ShadowSample | None:
        """The next sample; None where there is no prompt or no credit, others came in between, or it failed.

        Args:
            levels: variant and denoising steps, 0 for its own; the last is the light one.
            draw: an order's images.
            quiet: whether there is little else to do; asked before every image.
        """
        if not self._prompts or self._credit < len(levels):
            return None
        prompt, seed = self._random.choice(self._prompts), self._random.getrandbits(32)
        images, confidence = [], 0.0
        for role, steps in levels:
            if not quiet():
                return None
            self._credit -= 1
            order = GenerationRequest(
                prompt, self._size, self._size, role=role, seed=seed, steps=steps or None, cache="off", caller=CALLER
            )
            try:
                (drawn,) = await draw(order)
            except WeirError:
                return None
            images.append(drawn.result.image)
            confidence = drawn.confidence or 0.0
        self._prompts.remove(prompt)
        return ShadowSample(prompt, tuple(images), confidence)

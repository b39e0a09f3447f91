"""Shadow samples: a recent prompt, generated again at every approximation level while there is little else to do.

They show what a classifier's levels really lose. A few prompts are kept in memory, and only where the configuration
asks for shadow samples. Their images are only judged, never answered, and nothing of them enters a cache.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from load_balancer.http.api_keys import Caller
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.errors import WeirError

#: Prompts that are remembered; the oldest leaves first.
RECENT = 64
#: Images that may be saved up for: what a quiet night allows is not generated in one go in the morning.
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
    """Remembers prompts, and how many images may be generated again.

    Args:
        share: images of samples over images that were asked for; 0 remembers nothing.
        size: side of the family's own images; requests of other sizes are not sampled, nor those that set anything that
            a level would change.
        random: chooses prompts and seeds.
    """

    def __init__(self, share: float, size: int, random: random.Random):
        self._share = share
        self._size = size
        self._random = random
        self._prompts: list[str] = []
        self._credit = 0.0

    def note(self, request: GenerationRequest) -> None:
        """A request was admitted."""
        if not self._share or request.caller is CALLER:
            return
        self._credit = min(MOST_CREDIT, self._credit + self._share * request.n)
        plain = (request.variant, request.steps, request.guidance, request.negative_prompt) == (None, None, None, "")
        if plain and (request.width, request.height) == (self._size, self._size):
            self._prompts = [*self._prompts[1 - RECENT :], request.prompt]

    async def sample(
        self,
        levels: Sequence[tuple[str, int]],
        generate: Callable[[GenerationRequest], Awaitable[list[GeneratedImage]]],
        quiet: Callable[[], bool],
    ) -> ShadowSample | None:
        """The next sample; None where there is no prompt or no credit, others came in between, or it failed.

        Args:
            levels: key of the variant and denoising steps, 0 for its own; the last is the fastest variant.
            generate: the images of a request.
            quiet: whether there is little else to do; asked before every image.
        """
        if not self._prompts or self._credit < len(levels):
            return None
        prompt, seed = self._random.choice(self._prompts), self._random.getrandbits(32)
        images, confidence = [], 0.0
        for variant, steps in levels:
            if not quiet():
                return None
            self._credit -= 1
            request = GenerationRequest(
                prompt,
                self._size,
                self._size,
                variant=variant,
                seed=seed,
                steps=steps or None,
                cache="off",
                caller=CALLER,
            )
            try:
                (image,) = await generate(request)
            except WeirError:
                return None
            images.append(image.result.image)
            confidence = image.confidence or 0.0
        self._prompts.remove(prompt)
        return ShadowSample(prompt, tuple(images), confidence)

"""Shadow samples: a recent prompt is generated again at every approximation level while the service is nearly idle.

They measure the loss of quality at the levels that a classifier predicts. A few prompts are kept in memory, and only if
the configuration enables shadow samples. Their images are judged, never answered, and never enter the cache.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from load_balancer.http.api_keys import Caller
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.core import ImageSize
from weir.errors import WeirError

#: Number of prompts that are kept; the oldest is removed first.
RECENT = 64
#: Largest credit, images: the credit of an idle night is not used up at once in the morning.
MOST_CREDIT = 20.0
#: Largest share of the replicas that images in flight may occupy when an image of a sample begins.
QUIET = 0.25
#: The caller of shadow samples, which have the lowest priority.
CALLER = Caller("shadow", "weir-shadow", priority="batch")


@dataclass(frozen=True, slots=True)
class ShadowSample:
    """The images (PNG) of one prompt and seed, one for each requested level, and the discriminator's confidence in the
    light image."""

    prompt: str
    images: tuple[bytes, ...]
    confidence: float


class ShadowSamples:
    """Keeps recent prompts, and the credit of images that may be generated as samples.

    Args:
        share: images of samples divided by requested images; 0 keeps no prompts.
        size: the family's own; requests of other sizes are not sampled, nor edits, nor those with settings that a
            level would change.
        random: chooses prompts and seeds.
    """

    def __init__(self, share: float, size: ImageSize, random: random.Random):
        self._share = share
        self._size = size
        self._random = random
        self._prompts: list[str] = []
        self._credit = 0.0

    def note(self, request: GenerationRequest) -> None:
        """Records an admitted request."""
        if not self._share or request.caller is CALLER:
            return
        self._credit = min(MOST_CREDIT, self._credit + self._share * request.n)
        plain = (request.variant, request.steps, request.guidance, request.negative_prompt) == (None, None, None, "")
        as_written = request.prompt_syntax == "plain" and request.edit is None and not request.adapters
        if plain and as_written and request.size == self._size:
            self._prompts = [*self._prompts[1 - RECENT :], request.prompt]

    async def sample(
        self,
        levels: Sequence[tuple[str, int]],
        generate: Callable[[GenerationRequest], Awaitable[list[GeneratedImage]]],
        quiet: Callable[[], bool],
    ) -> ShadowSample | None:
        """Generates the next sample; None without a prompt or credit, or if it failed or other requests arrived.

        Args:
            levels: key of the variant and denoising steps, 0 for its own; the last level is the fastest variant.
            generate: generates the images of a request.
            quiet: whether the service is nearly idle; called before every image.
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

"""An engine without models: it sleeps what the profile measured. A pool of these is a cluster on one laptop."""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from weir.core import ImageRequest
from weir.errors import StateRefused, WeirError
from weir.profiles import Profile
from weir.states import State, capture_steps
from workers.engine.engine import DenoiseJob, EngineOutput, run_to_end, wants_judge
from workers.engine.scheduling import Recipe

#: Below this a sleep costs more than it waits for.
_SHORTEST_SLEEP_S = 1e-4
#: A long sleep shows progress this often.
_BEAT_S = 1.0
#: Pixels to a side of a latent's place, and its channels: as in every Stable Diffusion, so that states weigh the same.
_FACTOR, _CHANNELS = 8, 4


@dataclass(slots=True, eq=False)
class _Sample:
    order: DenoiseJob
    step: int


class EmulatedEngine:
    """Same interface as the real one; every answer says ``emulated``.

    With a profile that measured steps, images join and leave at every step as they do in the real engine. One that only
    measured whole batches (published ones do) is emulated as it was measured: a batch is one call as long as all its
    steps, of images that have the same steps to go, and nobody joins it on the way.

    An image's confidence is one of the profile's measured ones of its variant, picked by a hash of prompt and seed: the
    same request always gets the same, and many requests follow the measured distribution. What one request gets of
    several variants belongs together, for they were measured with the same prompts.
    """

    emulated = True

    def __init__(self, profile: Profile):
        self.profile = profile
        self.beat = time.monotonic()
        shades = [round(214 - i * (214 - 96) / (len(profile.keys) - 1)) for i in range(len(profile.keys))]
        self._images = {key: _placeholder(shade) for key, shade in zip(profile.keys, shades, strict=True)}

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        states = starts or [None] * len(requests)
        return run_to_end(self, [self._order(variant, r, s) for r, s in zip(requests, states, strict=True)])

    def _order(self, variant: str, request: ImageRequest, state: State | None) -> DenoiseJob:
        steps = request.overrides.steps or self.profile.variant(variant).steps
        guidance = request.overrides.guidance or 0.0
        return DenoiseJob(Recipe(variant, request.width, request.height, steps, guidance), request, state, role=variant)

    def call_of(self, order: DenoiseJob) -> Hashable:
        recipe = order.recipe
        if self.profile.variant(recipe.variant).stepwise:
            return recipe.variant, recipe.width, recipe.height
        return recipe, order.first

    def check(self, order: DenoiseJob) -> None:
        start, name = order.start, self.profile.variant(order.recipe.variant).name
        if start is None or order.warm:
            return
        assert order.request.resume is not None
        given, expected = (
            (start.model, start.step, start.steps),
            (name, order.request.resume.step, order.recipe.steps * order.stride),
        )
        if given != expected:
            raise StateRefused(f"the latent's model, step and number of steps are {given}; this run needs {expected}")

    def begin(self, orders: Sequence[DenoiseJob]) -> list[_Sample | WeirError]:
        if (fixed := self.profile.variant(orders[0].recipe.variant).fixed) is not None:
            self._sleep(fixed.text_s * len(orders))
        begun: list[_Sample | WeirError] = []
        for order in orders:
            try:
                self.check(order)
                begun.append(_Sample(order, order.first))
            except WeirError as error:
                begun.append(error)
        return begun

    def step(self, samples: Sequence[_Sample]) -> list[WeirError | None]:
        recipe = samples[0].order.recipe
        variant = self.profile.variant(recipe.variant)
        if variant.stepwise:
            self._sleep(variant.step_seconds.at(len(samples)))
            for sample in samples:
                sample.step += 1
        else:
            left = recipe.steps - samples[0].step
            self._sleep(variant.latency.at(len(samples)) * left / variant.steps)
            for sample in samples:
                sample.step = recipe.steps
        return [None] * len(samples)

    def finish(self, samples: Sequence[_Sample]) -> list[Future[EngineOutput]]:
        if (fixed := self.profile.variant(samples[0].order.recipe.variant).fixed) is not None:
            self._sleep((fixed.decode_s + fixed.discriminator_s) * len(samples))
        answers: list[Future[EngineOutput]] = []
        for sample in samples:
            answers.append(Future())
            answers[-1].set_result(self._drawn(sample.order))
        return answers

    def _drawn(self, order: DenoiseJob) -> EngineOutput:
        recipe, request = order.recipe, order.request
        keeps = capture_steps(recipe.steps) if request.capture is not None and order.stride == 1 else ()
        judged = recipe.variant != self.profile.keys[-1] or wants_judge(request)
        return EngineOutput(
            self._images[recipe.variant],
            self.confidence(request, recipe.variant) if judged else None,
            recipe.steps - order.first,
            first=order.first * order.stride,
            states=tuple(self._state(order, k) for k in keeps if k > order.first),
            latent=self._state(order, recipe.steps) if request.keep_latent else None,
        )

    def _state(self, order: DenoiseJob, step: int) -> State:
        """Zeros of the size that a real one has."""
        import numpy as np

        shape = (_CHANNELS, order.recipe.height // _FACTOR, order.recipe.width // _FACTOR)
        name = self.profile.variant(order.recipe.variant).name
        return State(np.zeros(shape, np.float16), step, order.recipe.steps, "emulated", name)

    def confidence(self, request: ImageRequest, variant: str) -> float:
        """0…1. A last variant without measured confidences has the first one's, of other prompts; uniform where nothing
        was measured."""
        own = self.profile.variant(variant).confidences
        measured = own or self.profile.confidences
        picked = f"{request.seed}\n{request.prompt}" + (
            "" if own or variant == self.profile.keys[0] else f"\n{variant}"
        )
        digest = hashlib.blake2b(picked.encode(), digest_size=6).digest()
        share = int.from_bytes(digest) / 2**48
        return measured[int(share * len(measured))] if measured else share

    def preview(self, sample: _Sample) -> bytes | None:
        return self._images[sample.order.recipe.variant]

    def warm_up(self, batch_size: int, variants: Sequence[str] = ()) -> None:
        pass

    def probe(self) -> None:
        pass

    def _sleep(self, seconds: float) -> None:
        self.beat = time.monotonic()
        end = self.beat + seconds
        while (left := end - time.monotonic()) > _SHORTEST_SLEEP_S:
            time.sleep(min(left, _BEAT_S))
            self.beat = time.monotonic()


def _placeholder(gray: int, side: int = 8) -> bytes:
    """A PNG of one shade, written by hand so that an emulated worker needs no imaging library."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([gray]) * side) * side
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

"""An engine without models that sleeps for the profile's latencies, to emulate a cluster on one machine."""

from __future__ import annotations

import hashlib
import random
import struct
import time
import zlib
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache

from weir.adapters import AdapterUse
from weir.core import ImageRequest
from weir.errors import StateRefused, WeirError
from weir.profiles import Profile, VariantProfile
from weir.states import State, capture_steps
from workers.engine.engine import DenoiseJob, EngineOutput, run_to_end, wants_judge
from workers.engine.scheduling import Recipe

#: Shorter sleeps are skipped: their overhead would exceed their duration.
_SHORTEST_SLEEP_S = 1e-4
#: Interval at which a long sleep updates ``beat``.
_BEAT_S = 1.0
#: Downsampling factor and channels of a latent in Stable Diffusion, so that states have the same size.
_FACTOR, _CHANNELS = 8, 4
#: Number of pairs of variant and size whose times are kept.
_SIZES = 256


@dataclass(slots=True, eq=False)
class _EmulatedSample:
    job: DenoiseJob
    step: int


class EmulatedEngine:
    """Implements :class:`workers.engine.engine.Engine` with sleeps; every result is marked ``emulated``.

    If the profile measured steps, images join and leave at every step as in the real engine. If it only measured whole
    batches, as published profiles do, a batch is one call that takes as long as all its steps: its images have the
    same number of steps left, and no image joins later.

    An image's confidence is one of the variant's measured confidences, selected by a hash of prompt and seed. Equal
    requests get equal confidences, and many requests follow the measured distribution. The confidences of one request
    for several variants are correlated as measured, because the profile used the same prompts for all variants.
    """

    emulated = True
    on_cpu = False

    def __init__(self, profile: Profile):
        self.profile = profile
        self._variant = lru_cache(_SIZES)(profile.variant)
        self.beat = time.monotonic()
        shades = [round(214 - i * (214 - 96) / (len(profile.keys) - 1)) for i in range(len(profile.keys))]
        self._images = {
            key: _placeholder(shade, profile.image_bytes) for key, shade in zip(profile.keys, shades, strict=True)
        }

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        states = starts or [None] * len(requests)
        return run_to_end(self, [self._job(variant, r, s) for r, s in zip(requests, states, strict=True)])

    def _job(self, variant: str, request: ImageRequest, state: State | None) -> DenoiseJob:
        steps = request.overrides.steps or self.profile.variant(variant).steps
        guidance = request.overrides.guidance or 0.0
        recipe = Recipe(variant, request.size, steps, guidance, request.overrides.sampler or "ddim")
        return DenoiseJob(recipe, request, state, role=variant)

    def call_of(self, job: DenoiseJob) -> Hashable:
        recipe = job.recipe
        if self.profile.variant(recipe.variant).stepwise:
            return recipe.variant, recipe.size
        return recipe, job.first

    def prepare(self, request: ImageRequest) -> None:
        pass

    def check_adapter(self, use: AdapterUse) -> None:
        pass

    def check(self, job: DenoiseJob) -> None:
        start, name = job.start, self._name(job)
        if start is None or job.warm:
            return
        assert job.request.resume is not None
        given, expected = (
            (start.model, start.step, start.steps),
            (name, job.request.resume.step, job.recipe.steps * job.stride),
        )
        if given != expected:
            raise StateRefused(f"the latent's model, step and number of steps are {given}; this run needs {expected}")

    def begin(self, jobs: Sequence[DenoiseJob]) -> list[_EmulatedSample | WeirError]:
        if (fixed := self.times(jobs[0].recipe).fixed) is not None:
            self._sleep(fixed.text_s * len(jobs))
        begun: list[_EmulatedSample | WeirError] = []
        for job in jobs:
            try:
                self.check(job)
                begun.append(_EmulatedSample(job, job.first))
            except WeirError as error:
                begun.append(error)
        return begun

    def step(self, samples: Sequence[_EmulatedSample]) -> list[WeirError | None]:
        recipe = samples[0].job.recipe
        variant = self.times(recipe)
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

    def finish(self, samples: Sequence[_EmulatedSample]) -> list[Future[EngineOutput]]:
        if (fixed := self.times(samples[0].job.recipe).fixed) is not None:
            self._sleep((fixed.decode_s + fixed.discriminator_s) * len(samples))
        answers: list[Future[EngineOutput]] = []
        for sample in samples:
            answers.append(Future())
            answers[-1].set_result(self._output(sample.job))
        return answers

    def times(self, recipe: Recipe) -> VariantProfile:
        """The measurements of a variant, with its times at the size of the images."""
        return self._variant(recipe.variant, recipe.size)

    def _output(self, job: DenoiseJob) -> EngineOutput:
        recipe, request = job.recipe, job.request
        keeps = capture_steps(recipe.steps) if request.capture is not None and job.stride == 1 else ()
        judged = recipe.variant != self.profile.keys[-1] or wants_judge(request)
        return EngineOutput(
            self._images[recipe.variant],
            self.confidence(request, recipe.variant) if judged else None,
            recipe.steps - job.first,
            first=job.first * job.stride,
            states=tuple(self._state(job, k) for k in keeps if k > job.first),
            latent=self._state(job, recipe.steps) if request.keep_latent else None,
        )

    def _state(self, job: DenoiseJob, step: int) -> State:
        """A state of zeros with the size of a real one."""
        import numpy as np

        shape = (_CHANNELS, job.recipe.size.height // _FACTOR, job.recipe.size.width // _FACTOR)
        return State(np.zeros(shape, np.float16), step, job.recipe.steps, "emulated", self._name(job))

    def _name(self, job: DenoiseJob) -> str:
        """Identifies what a state was made by: a variant with its adapters and their scales."""
        return "+".join((self.profile.variant(job.recipe.variant).name, *map(str, job.request.adapters)))

    def confidence(self, request: ImageRequest, variant: str) -> float:
        """Confidence in the image of a request, 0…1.

        A last variant without measured confidences uses the first variant's, selected independently. Without any
        measured confidences they are uniform.
        """
        own = self.profile.variant(variant).confidences
        measured = own or self.profile.confidences
        hashed = f"{request.seed}\n{request.prompt}" + (
            "" if own or variant == self.profile.keys[0] else f"\n{variant}"
        )
        digest = hashlib.blake2b(hashed.encode(), digest_size=6).digest()
        share = int.from_bytes(digest) / 2**48
        return measured[int(share * len(measured))] if measured else share

    def preview(self, sample: _EmulatedSample) -> bytes | None:
        return self._images[sample.job.recipe.variant]

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


def _placeholder(gray: int, size: int, side: int = 8) -> bytes:
    """A PNG of one shade of gray, encoded without an imaging library, with noise that no viewer shows up to ``size``
    bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([gray]) * side) * side
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    padding = chunk(b"noIs", random.Random(gray).randbytes(size)) if size else b""
    return image + padding + chunk(b"IEND", b"")

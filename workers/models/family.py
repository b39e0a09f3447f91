"""A family's models, resident on one device: the engine that generates real images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import torch

from weir.config import FamilyConfig
from weir.core import ImageRequest, Overrides
from weir.errors import NotFinite, StateRefused, WeirError
from weir.states import State, capture_steps
from workers.engine.engine import DenoiseJob, EngineOutput, OutOfMemory, order_for, run_to_end
from workers.engine.image_decoder import NOT_FINITE, Confidence, Judged, Pictures
from workers.engine.samplers import Schedule
from workers.models.denoiser import Denoiser, InTheMaking
from workers.models.device import device_of, dtype_of, keep_freed_memory, probe, within_memory
from workers.models.judges import family_judges
from workers.models.noise import generator
from workers.models.prompt_encoder import PromptEncoder, Text
from workers.models.weights import Pipeline, is_sdxl, load_pipelines

log = logging.getLogger(__name__)

_WARM_UP_STEPS = 2

T = TypeVar("T")


class Family:
    """The pipelines of a ladder and its discriminators; implements :class:`workers.engine.engine.Engine`.

        family = Family.load(load_family("deploy/families/weir-tiny.yaml"))
        [drawn] = family.generate("light", [request])

    A call of the denoiser takes every sample at its own step, with its own prompt, guidance and schedule. The picture
    of a request depends on its own fields alone (to numerical noise): its noise comes from its seed, drawn on the CPU
    so that every device starts from the same, and its negative prompt is encoded as if it were alone. Latents are
    float32 between the steps, whatever the denoiser's dtype.
    """

    emulated = False

    def __init__(
        self,
        config: FamilyConfig,
        pipelines: Mapping[str, Pipeline],
        judges: Mapping[str, Confidence | None] | None = None,
        *,
        decode_aside: bool | None = None,
    ):
        """
        Args:
            pipelines: by variant, from the fastest to the best.
            judges: by variant; None: none has one.
            decode_aside: as :class:`workers.engine.image_decoder.Pictures` has it.
        """
        self.config = config
        self.pipelines = pipelines
        self.judges = judges or dict.fromkeys(pipelines)
        self.device = pipelines[config.keys[-1]].device
        self.beat = time.monotonic()
        self._denoisers: dict[str, Denoiser] = {}
        for key, pipeline in pipelines.items():
            same = (self._denoisers[it] for it in self._denoisers if pipelines[it].unet is pipeline.unet)
            self._denoisers[key] = Denoiser(pipeline, compiled=config.compile, like=next(same, None))
        self.samplers = {key: denoiser.sampler for key, denoiser in self._denoisers.items()}
        self.models = {key: f"{config.variants[key].name}-{it.revision}" for key, it in self._denoisers.items()}
        self._texts = PromptEncoder(self.device)
        side = max(config.allowed_sizes)
        self._pictures = Pictures(pipelines, self.judges, self._drawn, side=side, aside=decode_aside)

    @classmethod
    def load(cls, config: FamilyConfig, *, threads: int | None = None) -> Family:
        """Reads the weights.

        Args:
            threads: of torch on the CPU, for this process; None leaves torch's choice.

        Raises:
            ConfigError: names the key of the family file, the path and the remedy.
        """
        device, dtype = device_of(config), dtype_of(config)
        if device.type == "cpu":
            keep_freed_memory()
            if threads is not None:
                torch.set_num_threads(threads)
        return cls(config, load_pipelines(config, device, dtype), family_judges(config, str(device)))

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        states = starts or [None] * len(requests)
        orders = [order_for(self.config, variant, r, s) for r, s in zip(requests, states, strict=True)]
        return run_to_end(self, orders)

    # ---------------------------------------------------------------------------------------------- begin

    def call_of(self, order: DenoiseJob) -> Hashable:
        return order.recipe.variant, order.recipe.width, order.recipe.height

    def check(self, order: DenoiseJob) -> None:
        start, recipe = order.start, order.recipe
        if start is None:
            return
        wanted: dict[str, tuple[object, object]] = {
            "shape": (start.latent.shape, self._shape(order)),
            "dtype": (str(start.latent.dtype), "float16"),
        }
        if order.warm:
            wanted["step"] = (start.step, start.steps)
        else:
            assert order.request.resume is not None
            wanted["step"] = (start.step, order.request.resume.step)
            wanted["number of steps"] = (start.steps, recipe.steps * order.stride)
            wanted["sampler"] = (start.sampler, self.samplers[recipe.variant].id)
            wanted["model"] = (start.model, self.models[recipe.variant])
            if order.stride > 1 and start.steps == recipe.steps * order.stride:
                wanted["noise level"] = (self._level(order, start.steps, start.step), self._level(order))
        for what, (given, expected) in wanted.items():
            if given != expected:
                raise StateRefused(f"the latent's {what} is {given}; this run needs {expected}")
        if not np.isfinite(start.latent).all():
            raise StateRefused("the latent holds values that are not finite numbers")

    def begin(self, orders: Sequence[DenoiseJob]) -> list[InTheMaking | WeirError]:
        self.beat = time.monotonic()
        return self._within_memory(lambda: [*self._begin(orders)], orders)

    def _begin(self, orders: Sequence[DenoiseJob]) -> list[InTheMaking | WeirError]:
        texts = self._encode(orders)
        begun: list[InTheMaking | WeirError] = []
        for order, (prompt, negative) in zip(orders, texts, strict=True):
            try:
                self.check(order)
                request = order.request
                schedule = self.samplers[order.recipe.variant].schedule(order.recipe.steps)
                # the states of a run that leaves steps out are not those that others look for
                keeps = {*(capture_steps(len(schedule)) if request.capture is not None and order.stride == 1 else ())}
                keeps |= {len(schedule)} if request.keep_latent else set()
                latent = self._latent(order, schedule)
                begun.append(InTheMaking(order, schedule, order.first, latent, prompt, negative, frozenset(keeps)))
            except WeirError as error:
                begun.append(error)
        return begun

    def _latent(self, order: DenoiseJob, schedule: Schedule) -> torch.Tensor:
        """The latent [C, H/f, W/f] that enters the order's first step."""
        if order.start is not None and not order.warm:
            return torch.from_numpy(order.start.latent).to(self.device, torch.float32)
        noise = torch.randn(self._shape(order), generator=generator(order.request.seed)).to(self.device)
        if order.start is None:
            return noise * schedule.initial
        finished = torch.from_numpy(order.start.latent).to(self.device, torch.float32)
        return finished * schedule.signal[order.first] + noise * schedule.noise[order.first]

    def _level(self, order: DenoiseJob, steps: int | None = None, step: int | None = None) -> tuple[float, float]:
        """Shares of signal and of noise in the latent that enters a step; of the order's own first one, if not said."""
        schedule = self.samplers[order.recipe.variant].schedule(order.recipe.steps if steps is None else steps)
        at = order.first if step is None else step
        return round(float(schedule.signal[at]), 6), round(float(schedule.noise[at]), 6)

    def _shape(self, order: DenoiseJob) -> tuple[int, int, int]:
        """Of one latent."""
        pipeline, recipe = self.pipelines[order.recipe.variant], order.recipe
        factor = pipeline.vae_scale_factor
        return pipeline.unet.config.in_channels, recipe.height // factor, recipe.width // factor

    def _encode(self, orders: Sequence[DenoiseJob]) -> list[tuple[Text, Text | None]]:
        """Prompt and, of guided orders, negative prompt. SDXL stands zeros in for an empty negative prompt."""
        pipeline = self.pipelines[orders[0].recipe.variant]
        embeds_guidance = pipeline.unet.config.time_cond_proj_dim is not None
        zeros = is_sdxl(pipeline) and pipeline.config.force_zeros_for_empty_prompt
        prompts = [(order.request.tenant, order.request.prompt) for order in orders]
        negatives = [
            (order.request.tenant, order.request.negative_prompt)
            if order.recipe.guidance > 1 and not embeds_guidance
            else None
            for order in orders
        ]
        read = [said for said in negatives if said is not None and (said[1] or not zeros)]
        texts = self._texts.read(pipeline, [*prompts, *read])
        encoded: list[tuple[Text, Text | None]] = []
        for said, negative in zip(prompts, negatives, strict=True):
            prompt = texts[said]
            if negative is not None and not negative[1] and zeros:
                encoded.append((prompt, prompt.zeros()))
            else:
                encoded.append((prompt, None if negative is None else texts[negative]))
        return encoded

    # ------------------------------------------------------------------------------------ step and finish

    def step(self, samples: Sequence[InTheMaking]) -> list[WeirError | None]:
        self.beat = time.monotonic()
        denoiser = self._denoisers[samples[0].order.recipe.variant]
        finite = self._within_memory(lambda: denoiser.step(tuple(samples)), [s.order for s in samples])
        self.beat = time.monotonic()
        return [None if fine else NotFinite(NOT_FINITE) for fine in finite]

    def finish(self, samples: Sequence[InTheMaking]) -> list[Future[EngineOutput]]:
        return self._pictures.finish(samples)

    def _drawn(self, sample: InTheMaking, image: bytes, judged: Judged) -> EngineOutput:
        order, variant = sample.order, sample.order.recipe.variant
        steps = order.recipe.steps
        kept = [State(x.numpy(), k, steps, self.samplers[variant].id, self.models[variant]) for k, x in sample.kept]
        return EngineOutput(
            image,
            judged.confidence,
            steps - order.first,
            first=order.first * order.stride,
            states=tuple(state for state in kept if state.step < steps),
            latent=next((state for state in kept if state.step == steps), None),
            seen=judged.seen,
        )

    def preview(self, sample: InTheMaking) -> bytes | None:
        if sample.estimate is None:
            return None
        with torch.inference_mode():
            return self._pictures.preview(sample.estimate())

    # --------------------------------------------------------------------------------------------- device

    def warm_up(self, batch_size: int, variants: Sequence[str] = ()) -> None:
        size = self.config.size
        doubling = {2**i for i in range(batch_size.bit_length())} if self.config.compile else {1}
        sizes = sorted({*doubling, batch_size})
        batches = [(key, batch) for key in variants or self.config.keys for batch in sizes]
        for done, (key, batch) in enumerate(batches, 1):
            requests = [
                ImageRequest(f"warm-up-{i}", "", i, size, size, float("inf"), overrides=Overrides(steps=_WARM_UP_STEPS))
                for i in range(batch)
            ]
            try:
                self.generate(key, requests)
            except OutOfMemory as error:  # the loop halves such a batch
                log.warning("warm-up: %s", error.message)
            log.info("warm-up: %d of %d (%s × %d)", done, len(batches), key, batch)

    def probe(self) -> None:
        probe(self.device)

    def _within_memory(self, work: Callable[[], T], orders: Sequence[DenoiseJob]) -> T:
        what = f"a batch of {len(orders)} at {orders[0].recipe.width} px"
        return within_memory(self.device, work, what, self._forget)

    def _forget(self) -> None:
        for denoiser in self._denoisers.values():
            denoiser.forget()

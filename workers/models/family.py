"""The engine that runs a family's models on one device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from weir.adapters import AdapterUse
from weir.config import FamilyConfig
from weir.core import Edit, ImageRequest, Overrides
from weir.errors import NotFinite, StateRefused, WeirError
from weir.prompts import parsed
from weir.samplers import Scheduler
from weir.states import State, capture_steps
from workers.engine.engine import DenoiseJob, EngineOutput, OutOfMemory, denoise_job, run_to_end
from workers.engine.image_decoder import NOT_FINITE, Confidence, ImageDecoder, Judged
from workers.engine.samplers import Sampler, Schedule
from workers.engine.scheduling import Recipe
from workers.models import stored_weights
from workers.models.architectures.architecture import Architecture, Pipeline, Text
from workers.models.architectures.registry import adapt
from workers.models.broken_weights import unusable
from workers.models.denoiser import Denoiser, DenoisingState
from workers.models.device import device_of, dtype_of, keep_freed_memory, probe, within_memory
from workers.models.edits import Pictures, Unchanged, blank_edit
from workers.models.judges import family_judges
from workers.models.lora.adapter_store import AdapterSet, AdapterStore, model_id
from workers.models.noise import generator
from workers.models.prompt_encoder import EMPTY, PromptEncoder
from workers.models.safety import SafetyChecker, family_safety_checker
from workers.models.source import inpainting_key
from workers.models.weights import load_pipelines
from workers.models.weights_hash import weights_hash

log = logging.getLogger(__name__)

_WARM_UP_STEPS = 2

T = TypeVar("T")


class Family:
    """The pipelines of a ladder and its discriminators; implements :class:`workers.engine.engine.Engine`.

        family = Family.load(load_family("deploy/families/weir-tiny.yaml"))
        [output] = family.generate("light", [request])

    In one call of the denoiser, every sample has its own step, prompt, guidance and schedule. The image of a request
    depends only on the request, up to numerical noise: its initial noise is generated from its seed on the CPU, so that
    it is the same for every device, and its negative prompt is encoded separately. Latents are float32 between steps,
    whatever the denoiser's dtype.
    """

    emulated = False

    def __init__(
        self,
        config: FamilyConfig,
        pipelines: Mapping[str, Pipeline],
        judges: Mapping[str, Confidence | None] | None = None,
        *,
        checker: SafetyChecker | None = None,
        decode_aside: bool | None = None,
    ):
        """
        Args:
            pipelines: pipeline of each variant, from the fastest to the best, and under :func:`inpainting_key` the one
                with the inpainting UNet of a variant that has one.
            judges: judge of each variant, or None; None: no variant has a judge.
            checker: checks images before anybody sees them.
            decode_aside: as in :class:`workers.engine.image_decoder.ImageDecoder`.
        """
        self.config = config
        self.pipelines = pipelines
        self.judges = judges or dict.fromkeys(config.keys)
        self.device = pipelines[config.keys[-1]].device
        self.on_cpu = self.device.type == "cpu"
        self.beat = time.monotonic()
        self._adapters = {key: adapt(pipeline) for key, pipeline in pipelines.items()}
        self._denoisers: dict[str, Denoiser] = {}
        for key, model in self._adapters.items():
            same = (self._denoisers[it] for it in self._denoisers if self._adapters[it].denoiser is model.denoiser)
            self._denoisers[key] = Denoiser(model, compiled=config.compile, like=next(same, None))
        self._samplers: dict[tuple[str, Scheduler], Sampler] = {}
        for key in config.keys:
            for name in config.samplers_of(key):
                self._samplers[key, name] = Sampler(name, pipelines[key].scheduler.config)
                # so that no request waits for it
                self._samplers[key, name].schedule(
                    config.variants[key].steps, spacing=self._adapters[key].spacing(config.size)
                )
        texts = {model.text_key: model for model in self._adapters.values()}
        encoders = {key: weights_hash(*map(model.part, model.text_encoders)) for key, model in texts.items()}
        names = {it: own.name for key, own in config.variants.items() for it in (key, inpainting_key(key))}
        self.models = {
            key: f"{names[key]}-{it.revision}-{encoders[self._adapters[key].text_key]}"
            for key, it in self._denoisers.items()
        }
        self._prompts = PromptEncoder()
        self._loras = AdapterStore(config, self._adapters, self.device)
        for use in config.adapter_uses:
            self._loras.check(use)
        self._decoder = ImageDecoder(self._adapters, self.judges, checker, self._output, aside=decode_aside)

    @classmethod
    def load(cls, config: FamilyConfig, *, threads: int | None = None) -> Family:
        """Loads the weights.

        Args:
            threads: number of torch's threads on the CPU, for this process; None: torch's default.

        Raises:
            ConfigError: names the key of the family file, the path and the remedy.
            ServiceError: weights are not on this machine, and the hub does not answer.
        """
        stored_weights.check_available(config)
        device, dtype = device_of(config), dtype_of(config)
        if device.type == "cpu":
            keep_freed_memory()
            if threads is not None:
                torch.set_num_threads(threads)
        pipelines = load_pipelines(config, device, dtype)
        checker = family_safety_checker(config, str(device))
        return cls(config, pipelines, family_judges(config, str(device)), checker=checker)

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        states = starts or [None] * len(requests)
        jobs = [denoise_job(self.config, variant, r, s) for r, s in zip(requests, states, strict=True)]
        return run_to_end(self, jobs)

    def sampler(self, recipe: Recipe) -> Sampler:
        """The sampler of a recipe."""
        return self._samplers[recipe.variant, recipe.sampler]

    # ---------------------------------------------------------------------------------------------- begin

    def call_of(self, job: DenoiseJob) -> Hashable:
        return self._model_key(job), job.recipe.size

    def _model_key(self, job: DenoiseJob) -> str:
        """Key of a job's model: the variant's inpainting UNet for an edit with a mask, if there is one."""
        edit, key = job.request.edit, inpainting_key(job.recipe.variant)
        inpaints = edit is not None and edit.mask is not None and key in self._adapters
        return key if inpaints else job.recipe.variant

    def _model(self, job: DenoiseJob) -> Architecture:
        return self._adapters[self._model_key(job)]

    def prepare(self, request: ImageRequest) -> None:
        self._loras.load(request.adapters)

    def check_adapter(self, use: AdapterUse) -> None:
        self._loras.check(use)

    def check(self, job: DenoiseJob) -> None:
        start, recipe = job.start, job.recipe
        if start is None:
            return
        wanted: dict[str, tuple[object, object]] = {
            "shape": (start.latent.shape, self._shape(job)),
            "dtype": (str(start.latent.dtype), "float16"),
        }
        if job.warm:
            wanted["step"] = (start.step, start.steps)
        else:
            assert job.request.resume is not None
            wanted["step"] = (start.step, job.request.resume.step)
            wanted["number of steps"] = (start.steps, recipe.steps * job.stride)
            wanted["sampler"] = (start.sampler, self.sampler(recipe).id)
            wanted["model"] = (start.model, self._model_id(job, self._loras.load(job.request.adapters)))
            if job.stride > 1 and start.steps == recipe.steps * job.stride:
                wanted["noise level"] = (self._level(job, start.steps, start.step), self._level(job))
        for what, (given, expected) in wanted.items():
            if given != expected:
                raise StateRefused(f"the latent's {what} is {given}; this run needs {expected}")
        if not np.isfinite(start.latent).all():
            raise StateRefused("the latent holds values that are not finite numbers")

    def begin(self, jobs: Sequence[DenoiseJob]) -> list[DenoisingState | WeirError]:
        self.beat = time.monotonic()
        return self._within_memory(lambda: [*self._begin(jobs)], jobs)

    def _begin(self, jobs: Sequence[DenoiseJob]) -> list[DenoisingState | WeirError]:
        refusals = [self._refusal(job) for job in jobs]
        begun = iter(self._begin_accepted([job for job, it in zip(jobs, refusals, strict=True) if it is None]))
        return [next(begun) if it is None else it for it in refusals]

    def _refusal(self, job: DenoiseJob) -> WeirError | None:
        """Why the job's models cannot use its prompts; None if they can."""
        request = job.request
        prompts = (parsed(it, request.prompt_syntax) for it in (request.prompt, request.negative_prompt))
        try:
            self._model(job).check_prompts(*prompts)
        except WeirError as error:
            return error
        return None

    def _begin_accepted(self, jobs: Sequence[DenoiseJob]) -> list[DenoisingState | WeirError]:
        adapters = [self._loras.load(job.request.adapters) for job in jobs]
        texts = self._encode(jobs, adapters)
        begun: list[DenoisingState | WeirError] = []
        for job, own, (prompt, negative) in zip(jobs, adapters, texts, strict=True):
            try:
                self.check(job)
                request = job.request
                schedule = self._schedule(job.recipe, job.recipe.steps, job.first)
                # the states of a run with a stride are not captured: they differ from those of whole runs
                keeps = {*(capture_steps(len(schedule)) if request.capture is not None and job.stride == 1 else ())}
                keeps |= {len(schedule)} if request.keep_latent else set()
                noises = generator(request.seed)
                latent, unchanged = self._start(job, schedule, noises)
                begun.append(
                    DenoisingState(
                        job, schedule, job.first, latent, prompt, negative, frozenset(keeps), noises, own, unchanged
                    )
                )
            except WeirError as error:
                begun.append(error)
        return begun

    def _start(
        self, job: DenoiseJob, schedule: Schedule, noises: torch.Generator
    ) -> tuple[torch.Tensor, Unchanged | None]:
        """The latent [C, H/f, W/f] that enters the job's first step, and the parts of it that stay.

        Args:
            noises: gives the initial noise, and then that of each step; the noise of steps that do not run is skipped.

        Raises:
            InvalidRequest: the pictures of an edit are damaged.
        """
        if job.request.edit is not None:
            return self._edited(job, job.request.edit, schedule, noises)
        shape = self._shape(job)
        noise = torch.randn(shape, generator=noises).to(self.device)
        for _ in range(job.first if schedule.stochastic else 0):
            torch.randn(shape, generator=noises)
        if job.start is None:
            return noise * schedule.initial, None
        latent = torch.from_numpy(job.start.latent).to(self.device, torch.float32)
        return (schedule.noised(latent, noise, job.first) if job.warm else latent), None

    def _edited(
        self, job: DenoiseJob, edit: Edit, schedule: Schedule, noises: torch.Generator
    ) -> tuple[torch.Tensor, Unchanged | None]:
        """The start of an edit. The noise is drawn in diffusers' order: for the latent of the picture (which an
        inpainting UNet does not need at strength 1), for the start, for the latent of what inpainting UNets are shown,
        and then for the steps that run."""
        model, inpaints = self._model(job), self._model_key(job) != job.recipe.variant
        pictures, shape = Pictures.of(edit, job.recipe.size, self.device), self._shape(job)
        from_noise = edit.mask is not None and edit.strength == 1
        latent = None if inpaints and from_noise else model.encode_image(pictures.image, noises)
        noise = torch.randn(shape, generator=noises).to(self.device)
        start = noise * schedule.initial if from_noise or latent is None else schedule.noised(latent, noise, job.first)
        if inpaints:
            return start, Unchanged.of(pictures, model.encode_image(pictures.kept, noises), None)
        if edit.mask is not None:
            torch.randn(shape, generator=noises)
        assert latent is not None
        return start, Unchanged.of(pictures, latent, noise)

    def _level(self, job: DenoiseJob, steps: int | None = None, step: int | None = None) -> tuple[float, float]:
        """Signal and noise levels of the latent that enters a step; by default the job's first step."""
        schedule = self._schedule(job.recipe, job.recipe.steps if steps is None else steps)
        at = job.first if step is None else step
        return round(float(schedule.signal[at]), 6), round(float(schedule.noise[at]), 6)

    def _schedule(self, recipe: Recipe, steps: int, first: int = 0) -> Schedule:
        """The schedule of a run of ``steps`` steps by a recipe's sampler, at its size."""
        spacing = self._adapters[recipe.variant].spacing(recipe.size)
        return self.sampler(recipe).schedule(steps, first, spacing)

    def _shape(self, job: DenoiseJob) -> tuple[int, int, int]:
        """Shape [C, H/f, W/f] of the job's latents."""
        recipe = job.recipe
        return self._adapters[recipe.variant].latent_shape(recipe.size)

    def _model_id(self, job: DenoiseJob, adapters: AdapterSet) -> str:
        """Identifies what the states of a job are made by."""
        return model_id(self.models[self._model_key(job)], adapters)

    def _encode(self, jobs: Sequence[DenoiseJob], adapters: Sequence[AdapterSet]) -> Iterator[tuple[Text, Text | None]]:
        """Encodes prompts and, for guided jobs, negative prompts; those of equal adapters together."""
        encoded = {
            own: iter(self._encode_alike([job for job, it in zip(jobs, adapters, strict=True) if it == own], own))
            for own in dict.fromkeys(adapters)
        }
        return (next(encoded[own]) for own in adapters)

    def _encode_alike(self, jobs: Sequence[DenoiseJob], adapters: AdapterSet) -> list[tuple[Text, Text | None]]:
        """Encodes the prompts and negative prompts of jobs with the same adapters."""
        model = self._model(jobs[0])
        zeros = model.zeros_for_no_negative
        requests = [job.request for job in jobs]
        prompts = [(it.tenant, parsed(it.prompt, it.prompt_syntax)) for it in requests]
        negatives = [
            (it.tenant, parsed(it.negative_prompt, it.prompt_syntax))
            if model.guidance_factor(job.recipe.guidance) is not None
            else None
            for job, it in zip(jobs, requests, strict=True)
        ]
        needed = [key for key in negatives if key is not None and (key[1] != EMPTY or not zeros)]
        texts = self._prompts.read(model, [*prompts, *needed], adapters)
        encoded: list[tuple[Text, Text | None]] = []
        for key, negative in zip(prompts, negatives, strict=True):
            prompt = texts[key]
            if negative is None:
                encoded.append((prompt, None))
            elif negative[1] == EMPTY and zeros:
                encoded.append((prompt, prompt.zeros()))
            else:
                empty = partial(self._prompts.empty, model, key[0], adapters)
                encoded.append(model.of_one_length(prompt, texts[negative], empty))
        return encoded

    # ------------------------------------------------------------------------------------ step and finish

    def step(self, samples: Sequence[DenoisingState]) -> list[WeirError | None]:
        self.beat = time.monotonic()
        denoiser = self._denoisers[self._model_key(samples[0].job)]
        finite = self._within_memory(lambda: denoiser.step(tuple(samples)), [s.job for s in samples])
        self.beat = time.monotonic()
        return [None if fine else NotFinite(NOT_FINITE) for fine in finite]

    def finish(self, samples: Sequence[DenoisingState]) -> list[Future[EngineOutput]]:
        return self._decoder.finish(samples)

    def _output(self, sample: DenoisingState, image: bytes, judged: Judged) -> EngineOutput:
        job, steps = sample.job, sample.job.recipe.steps
        made_by = self.sampler(job.recipe).id, self._model_id(job, sample.adapters)
        kept = [State(x.numpy(), k, steps, *made_by) for k, x in sample.kept]
        return EngineOutput(
            image,
            judged.confidence,
            steps - job.first,
            first=job.first * job.stride,
            states=tuple(state for state in kept if state.step < steps),
            latent=next((state for state in kept if state.step == steps), None),
            seen=judged.seen,
            unused_tokens=sample.prompt.unused_tokens,
            unused_negative_tokens=0 if sample.negative is None else sample.negative.unused_tokens,
        )

    def preview(self, sample: DenoisingState) -> bytes | None:
        if sample.estimate is None:
            return None
        with torch.inference_mode():
            return self._decoder.preview(sample.estimate())

    # --------------------------------------------------------------------------------------------- device

    def warm_up(self, batch_size: int, variants: Sequence[str] = ()) -> None:
        size = self.config.size
        doubling = {2**i for i in range(batch_size.bit_length())} if self.config.compile else {1}
        sizes = sorted({*doubling, batch_size})
        edit, steps = blank_edit(size), Overrides(steps=_WARM_UP_STEPS)
        models = [
            (variant, key, given)
            for variant in variants or self.config.keys
            for key, given in ((variant, None), (inpainting_key(variant), edit))
            if key in self._adapters
        ]
        batches = [(*model, batch) for model in models for batch in sizes]
        for done, (variant, key, given, batch) in enumerate(batches, 1):
            requests = [
                ImageRequest(f"warm-up-{i}", "", i, size, float("inf"), overrides=steps, edit=given)
                for i in range(batch)
            ]
            try:
                outputs = self.generate(variant, requests)
            except OutOfMemory as error:  # the step loop splits such a batch
                log.warning("Warm-up: %s", error.message)
                continue
            for output in outputs:
                if output.error is not None:
                    raise unusable(self.config, variant, self._adapters[key], output.error[1], inpaints=key != variant)
            log.info("Warm-up: %d of %d (%s × %d)", done, len(batches), key, batch)

    def probe(self) -> None:
        probe(self.device)

    def _within_memory(self, work: Callable[[], T], jobs: Sequence[DenoiseJob]) -> T:
        recipe = jobs[0].recipe
        what = f"a batch of {len(jobs)} at {recipe.size} px"
        return within_memory(self.device, work, what, self._forget)

    def _forget(self) -> None:
        for denoiser in self._denoisers.values():
            denoiser.forget()

"""A family's models, resident on one device: the engine that draws real pictures."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image

from weir.config import FamilyConfig
from weir.core import ImageRequest, Role
from weir.errors import ConfigError, GenerationFailed, NotFinite, StateRefused, WeirError
from weir.states import State, capture_steps
from workers.engine import Drawn, Order, OutOfMemory, failed, order_for, run_to_end
from workers.previews import Previews
from workers.samplers import Sampler, Schedule
from workers.texts import Text, Texts
from workers.weights import Pipeline, is_sdxl, load_pipelines

log = logging.getLogger(__name__)

#: From this side on the decoder takes images one by one: each fills a device, and a batch would need memory for all.
_SLICED_SIDE = 512
_WARM_UP_STEPS = 2

T = TypeVar("T")


class Confidence(Protocol):
    """What the family needs of a discriminator; images are [B, 3, H, W] in −1…1, answers 0…1."""

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]: ...


@dataclass(slots=True, eq=False)
class _Sample:
    """One image in the making.

    Attributes:
        latent: float32 [C, H/f, W/f] that enters ``step``.
        negative: what guidance leads away from; None where guidance is off.
        keeps: the steps whose entering latents are kept; the number of steps itself stands for the finished one.
        kept: step and float16 latent on the host.
        estimate: the finished latent as the last step saw it coming; None before the first.
    """

    order: Order
    schedule: Schedule
    step: int
    latent: torch.Tensor
    prompt: Text
    negative: Text | None
    keeps: frozenset[int]
    kept: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    estimate: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """What samples that run together keep from step to step: B images, G of them guided.

    Attributes:
        latents: float32 [B, C, H/f, W/f].
        rows: [B + G], the image that each row of the call belongs to: every prompt, then the negatives of the guided.
        guided: [G]; guidance [G, 1, 1, 1] is their scale.
        conditions: the denoiser's other arguments, a row each.
    """

    samples: tuple[_Sample, ...]
    latents: torch.Tensor
    rows: torch.Tensor
    guided: torch.Tensor
    guidance: torch.Tensor
    conditions: dict[str, Any]


class Family:
    """Light and heavy pipeline and the discriminator; implements :class:`workers.engine.Engine`.

        family = Family.load(load_family("deploy/families/weir-tiny.yaml"))
        [drawn] = family.generate(Role.LIGHT, [request])

    A call of the denoiser takes every sample at its own step, with its own prompt, guidance and schedule. The picture
    of a request depends on its own fields alone (to numerical noise): its noise comes from its seed, drawn on the CPU
    so that every device starts from the same, and its negative prompt is encoded as if it were alone. Latents are
    float32 between the steps, whatever the denoiser's dtype.
    """

    emulated = False

    def __init__(
        self,
        config: FamilyConfig,
        pipelines: dict[Role, Pipeline],
        discriminator: Confidence | None = None,
        *,
        decode_aside: bool | None = None,
    ):
        """``decode_aside``: decode in a thread (on CUDA also a stream) of its own; None does so on CUDA.

        On the CPU the decoder would compete with the next step for the same core.
        """
        self.config = config
        self.pipelines = pipelines
        self.discriminator = discriminator
        self.device = pipelines[Role.LIGHT].device
        self.samplers = {role: Sampler(pipeline.scheduler) for role, pipeline in pipelines.items()}
        self.models = {role: f"{_variant(config, role).name}-{_digest(p.unet)}" for role, p in pipelines.items()}
        self.previews = Previews()
        self.beat = time.monotonic()
        self._texts = Texts(self.device)
        self._batches: dict[Role, _Batch] = {}
        self._encoders = ThreadPoolExecutor(4, thread_name_prefix="png")
        cuda = self.device.type == "cuda"
        aside = cuda if decode_aside is None else decode_aside
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode") if aside else None
        self._stream = torch.cuda.Stream(self.device) if cuda and aside else None
        self._unets = {role: _prepare_unet(p.unet, cuda, config.compile) for role, p in pipelines.items()}
        for pipeline in pipelines.values():
            _prepare_decoder(pipeline.vae, max(config.allowed_sizes))

    @classmethod
    def load(cls, config: FamilyConfig, *, threads: int | None = None) -> Family:
        """Reads the weights.

        Args:
            threads: of torch on the CPU, for this process; None leaves torch's choice.

        Raises:
            ConfigError: names the key of the family file, the path and the remedy.
        """
        device, dtype = _device(config), _dtype(config)
        if threads is not None and device.type == "cpu":
            torch.set_num_threads(threads)
        pipelines = load_pipelines(config, device, dtype)
        discriminator = None
        if config.discriminator is not None:
            from workers.discriminator import Discriminator

            discriminator = Discriminator.load(config.discriminator, str(device))
        return cls(config, pipelines, discriminator)

    def generate(
        self, role: Role, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[Drawn]:
        states = starts or [None] * len(requests)
        orders = [order_for(self.config, role, r, s) for r, s in zip(requests, states, strict=True)]
        return run_to_end(self, orders)

    # ---------------------------------------------------------------------------------------------- begin

    def call_of(self, order: Order) -> Hashable:
        return order.recipe.role, order.recipe.width, order.recipe.height

    def check(self, order: Order) -> None:
        start, recipe = order.start, order.recipe
        if start is None:
            return
        pipeline = self.pipelines[recipe.role]
        wanted: dict[str, tuple[object, object]] = {
            "shape": (start.latent.shape, _shape(pipeline, order)),
            "dtype": (str(start.latent.dtype), "float16"),
        }
        if order.warm:
            wanted["step"] = (start.step, start.steps)
        else:
            wanted["step"] = (start.step, order.request.resume_step)
            wanted["number of steps"] = (start.steps, recipe.steps)
            wanted["sampler"] = (start.sampler, self.samplers[recipe.role].id)
            wanted["model"] = (start.model, self.models[recipe.role])
        for what, (given, expected) in wanted.items():
            if given != expected:
                raise StateRefused(f"the latent's {what} is {given}; this run needs {expected}")
        if not np.isfinite(start.latent).all():
            raise StateRefused("the latent holds values that are not finite numbers")

    def begin(self, orders: Sequence[Order]) -> list[_Sample | WeirError]:
        self.beat = time.monotonic()
        return self._within_memory(lambda: [*self._begin(orders)], orders)

    def _begin(self, orders: Sequence[Order]) -> list[_Sample | WeirError]:
        texts = self._encode(orders)
        begun: list[_Sample | WeirError] = []
        for order, (prompt, negative) in zip(orders, texts, strict=True):
            try:
                self.check(order)
                role, request = order.recipe.role, order.request
                schedule = self.samplers[role].schedule(order.recipe.steps)
                keeps = {*(capture_steps(len(schedule)) if request.capture else ())}
                keeps |= {len(schedule)} if request.keep_latent else set()
                latent = self._latent(order, schedule)
                begun.append(_Sample(order, schedule, order.first, latent, prompt, negative, frozenset(keeps)))
            except WeirError as error:
                begun.append(error)
        return begun

    def _latent(self, order: Order, schedule: Schedule) -> torch.Tensor:
        """The latent [C, H/f, W/f] that enters the order's first step."""
        if order.start is not None and not order.warm:
            return torch.from_numpy(order.start.latent).to(self.device, torch.float32)
        pipeline = self.pipelines[order.recipe.role]
        generator = torch.Generator().manual_seed(order.request.seed)
        noise = torch.randn(_shape(pipeline, order), generator=generator).to(self.device)
        if order.start is None:
            return noise * schedule.initial
        finished = torch.from_numpy(order.start.latent).to(self.device, torch.float32)
        return finished * schedule.signal[order.first] + noise * schedule.noise[order.first]

    def _encode(self, orders: Sequence[Order]) -> list[tuple[Text, Text | None]]:
        """Prompt and, of guided orders, negative prompt. SDXL stands zeros in for an empty negative prompt."""
        pipeline = self.pipelines[orders[0].recipe.role]
        embeds_guidance = pipeline.unet.config.time_cond_proj_dim is not None
        zeros = is_sdxl(pipeline) and pipeline.config.force_zeros_for_empty_prompt
        negatives = [
            order.request.negative_prompt if order.recipe.guidance > 1 and not embeds_guidance else None
            for order in orders
        ]
        read = [n for n in negatives if n is not None and (n or not zeros)]
        texts = self._texts.read(pipeline, [*(order.request.prompt for order in orders), *read])
        encoded: list[tuple[Text, Text | None]] = []
        for order, negative in zip(orders, negatives, strict=True):
            prompt = texts[order.request.prompt]
            if negative == "" and zeros:
                encoded.append((prompt, prompt.zeros()))
            else:
                encoded.append((prompt, None if negative is None else texts[negative]))
        return encoded

    # ----------------------------------------------------------------------------------------------- step

    def step(self, samples: Sequence[_Sample]) -> list[WeirError | None]:
        self.beat = time.monotonic()
        finite = self._within_memory(lambda: self._step(tuple(samples)), [s.order for s in samples])
        self.beat = time.monotonic()
        return [None if fine else NotFinite(_NOT_FINITE) for fine in finite]

    def _step(self, samples: tuple[_Sample, ...]) -> list[bool]:
        role = samples[0].order.recipe.role
        pipeline, batch = self.pipelines[role], self._batches.get(role)
        if batch is None or batch.samples != samples:
            batch = self._assemble(samples)
        before = batch.latents
        columns = torch.tensor([s.schedule.rows[s.step] for s in samples]).T.to(self.device)
        timesteps = columns[0]
        scale, keep, push = columns[1:, :, None, None, None]
        output = self._unets[role](
            (before * scale).to(pipeline.unet.dtype)[batch.rows],
            timesteps[batch.rows],
            return_dict=False,
            **batch.conditions,
        )[0].float()
        if len(batch.guided):
            output, negative = output[: len(samples)], output[len(samples) :]
            output[batch.guided] = negative + batch.guidance * (output[batch.guided] - negative)
        latents = keep * before + push * output
        finite = latents.flatten(1).isfinite().all(1)
        self._batches[role] = _Batch(samples, latents, batch.rows, batch.guided, batch.guidance, batch.conditions)
        for i, sample in enumerate(samples):
            sample.estimate = _estimate(sample.schedule, sample.step, before[i], output[i])
            sample.latent = latents[i]
            sample.step += 1
            if sample.step in sample.keeps:
                sample.kept.append((sample.step, _to_host(sample.latent)))
        # Reading the flags waits for the device: no step is sent ahead, so that a late arrival finds no queue there.
        return finite.tolist()

    def _assemble(self, samples: tuple[_Sample, ...]) -> _Batch:
        pipeline = self.pipelines[samples[0].order.recipe.role]
        guided = [i for i, s in enumerate(samples) if s.negative is not None]
        negatives = [s.negative for s in samples if s.negative is not None]
        texts = [*(s.prompt for s in samples), *negatives]
        rows = torch.tensor([*range(len(samples)), *guided], device=self.device)
        scales = [samples[i].order.recipe.guidance for i in guided]
        conditions: dict[str, Any] = {"encoder_hidden_states": torch.stack([t.tokens for t in texts])}
        if is_sdxl(pipeline):
            conditions["added_cond_kwargs"] = {
                "text_embeds": torch.stack([t.pooled for t in texts if t.pooled is not None]),
                "time_ids": self._time_ids(pipeline, samples[0]).expand(len(texts), -1),
            }
        if (width := pipeline.unet.config.time_cond_proj_dim) is not None:
            weights = torch.tensor([s.order.recipe.guidance - 1 for s in samples])
            embedded = pipeline.get_guidance_scale_embedding(weights, embedding_dim=width)
            conditions["timestep_cond"] = embedded.to(self.device, pipeline.unet.dtype)
        return _Batch(
            samples,
            torch.stack([s.latent for s in samples]),
            rows,
            rows[len(samples) :],
            torch.tensor(scales, device=self.device)[:, None, None, None],
            conditions,
        )

    def _time_ids(self, pipeline: Pipeline, sample: _Sample) -> torch.Tensor:
        """SDXL's size conditions [1, 6]: drawn and cropped at the wanted size."""
        size = (sample.order.recipe.height, sample.order.recipe.width)
        width = pipeline.text_encoder_2.config.projection_dim
        ids = pipeline._get_add_time_ids(size, (0, 0), size, pipeline.unet.dtype, text_encoder_projection_dim=width)
        return ids.to(self.device)

    # --------------------------------------------------------------------------------------------- finish

    def finish(self, samples: Sequence[_Sample]) -> list[Future[Drawn]]:
        if self._decoder is None:
            return self._finish(samples)
        promised: list[Future[Drawn]] = [Future() for _ in samples]
        # The latents are there: the last step waited for them.
        self._decoder.submit(self._finish_aside, samples, promised)
        return promised

    def _finish_aside(self, samples: Sequence[_Sample], promised: list[Future[Drawn]]) -> None:
        with torch.cuda.stream(self._stream):
            for future, answer in zip(self._finish(samples), promised, strict=True):
                future.add_done_callback(partial(_pass_on, answer))

    def _finish(self, samples: Sequence[_Sample]) -> list[Future[Drawn]]:
        """Decodes and judges; a batch that fails is halved until it fits or the one image that breaks it is alone."""
        try:
            images, confidences = self._within_memory(lambda: self._decode(samples), [s.order for s in samples])
        except Exception as error:
            log.warning("%d images could not be decoded: %s: %s", len(samples), type(error).__name__, error)
            if len(samples) == 1:
                return [self._encoders.submit(failed, error)]
        else:
            pixels = to_pixels(images)
            finite = images.isfinite().flatten(1).all(1).tolist()
            rows = zip(samples, pixels, confidences, finite, strict=True)
            return [self._encoders.submit(self._picture, *row) for row in rows]
        middle = (len(samples) + 1) // 2
        return [*self._finish(samples[:middle]), *self._finish(samples[middle:])]

    def _decode(self, samples: Sequence[_Sample]) -> tuple[torch.Tensor, list[float] | list[None]]:
        role = samples[0].order.recipe.role
        latents = torch.stack([s.latent for s in samples])
        images = decode(self.pipelines[role].vae, latents)
        self.previews.learn(latents, images)
        if role is Role.LIGHT and self.discriminator is not None:
            prompts = [s.order.request.prompt for s in samples]
            return images, self.discriminator.confidence(images.nan_to_num(), prompts)
        return images, [None] * len(samples)

    def _picture(self, sample: _Sample, pixels: Any, confidence: float | None, finite: bool) -> Drawn:
        """Needs no device any more."""
        if not finite:
            return failed(NotFinite(_NOT_FINITE))
        order, role = sample.order, sample.order.recipe.role
        steps = order.recipe.steps
        kept = [State(x.numpy(), k, steps, self.samplers[role].id, self.models[role]) for k, x in sample.kept]
        return Drawn(
            to_png(pixels),
            confidence,
            steps - order.first,
            first=order.first,
            states=tuple(state for state in kept if state.step < steps),
            latent=next((state for state in kept if state.step == steps), None),
        )

    def preview(self, sample: _Sample) -> bytes | None:
        if sample.estimate is None:
            return None
        with torch.inference_mode():
            image = self.previews.image(sample.estimate()[None])
            return None if image is None else to_png(to_pixels(image)[0])

    # --------------------------------------------------------------------------------------------- device

    def warm_up(self, batch_size: int) -> None:
        size = self.config.size
        doubling = {2**i for i in range(batch_size.bit_length())} if self.config.compile else {1}
        batches = [(role, batch) for role in Role for batch in sorted({*doubling, batch_size})]
        for done, (role, batch) in enumerate(batches, 1):
            requests = [
                ImageRequest(f"warm-up-{i}", "", i, size, size, float("inf"), steps=_WARM_UP_STEPS)
                for i in range(batch)
            ]
            try:
                self.generate(role, requests)
            except OutOfMemory as error:  # the loop halves such a batch
                log.warning("warm-up: %s", error.message)
            log.info("warm-up: %d of %d (%s × %d)", done, len(batches), role.value, batch)

    def probe(self) -> None:
        value = torch.ones(8, device=self.device).sum().item()
        if value != 8:
            raise GenerationFailed(f"{self.device} adds eight ones to {value}")

    def _within_memory(self, work: Callable[[], T], orders: Sequence[Order]) -> T:
        """Raises :class:`OutOfMemory` for every kind of it."""
        try:
            with torch.inference_mode():
                return work()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Out of the handler: the exception's frames would keep the batch's tensors alive.
        self._batches.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(f"a batch of {len(orders)} at {orders[0].recipe.width} px does not fit {self.device}")


_NOT_FINITE = "the picture came out as not-a-number; try another seed or dtype: float32"


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W], float32, about −1…1, of scaled latents [B, C, H/f, W/f]."""
    latents = latents.to(vae.dtype) / vae.config.scaling_factor
    return vae.decode(latents, return_dict=False)[0].float()


def to_pixels(images: torch.Tensor) -> list[Any]:
    """[B, 3, H, W] in −1…1 to B arrays uint8 [H, W, 3]."""
    scaled = (images.nan_to_num() / 2 + 0.5).clamp(0, 1) * 255
    return list(scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def to_png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    # Level 1: a fifth of the time of the default for a few per cent more bytes, and the client waits meanwhile.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _pass_on(to: Future[Drawn], done: Future[Drawn]) -> None:
    if (error := done.exception()) is None:
        to.set_result(done.result())
    else:
        to.set_exception(error)


def _estimate(schedule: Schedule, step: int, latent: torch.Tensor, output: torch.Tensor) -> Callable[[], torch.Tensor]:
    """x̂_0 [C, H/f, W/f] of one step, when somebody asks for it."""
    return lambda: float(schedule.from_x[step]) * latent + float(schedule.from_m[step]) * output


def _to_host(latent: torch.Tensor) -> torch.Tensor:
    """A float16 copy in host memory. From CUDA it is under way when this returns, and there when the step is over."""
    half = latent.half()
    if half.device.type != "cuda":
        return half if half is not latent else half.clone()
    return torch.empty(half.shape, dtype=half.dtype, pin_memory=True).copy_(half, non_blocking=True)


def _shape(pipeline: Pipeline, order: Order) -> tuple[int, int, int]:
    """Of one latent."""
    factor, recipe = pipeline.vae_scale_factor, order.recipe
    return pipeline.unet.config.in_channels, recipe.height // factor, recipe.width // factor


def _digest(unet: Any) -> str:
    """Tells weights apart by the first and the last layer: every step of training changes both."""
    parts = [p.detach().float().cpu().numpy().tobytes() for p in (unet.conv_in.weight, unet.conv_out.weight)]
    return hashlib.blake2b(b"".join(parts), digest_size=6).hexdigest()


def _variant(config: FamilyConfig, role: Role) -> Any:
    return config.light if role is Role.LIGHT else config.heavy


def _prepare_unet(unet: Any, cuda: bool, compiled: bool) -> Any:
    """What is called in place of the denoiser. Channels-last is what tensor cores read; on the CPU it gains nothing."""
    if cuda:
        unet.to(memory_format=torch.channels_last)
    if compiled:
        return torch.compile(unet, dynamic=True)
    for module in unet.modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            for projection in (module.to_k, module.to_v):
                projection.forward = _remembering(projection.forward)
    return unet


def _remembering(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Keys and values of the prompts are the same at every step: made again only when the batch changes."""
    seen: torch.Tensor | None = None
    made: torch.Tensor | None = None

    def remembering(states: torch.Tensor) -> torch.Tensor:
        nonlocal seen, made
        if made is None or states is not seen:
            seen, made = states, forward(states)
        return made

    return remembering


def _prepare_decoder(vae: Any, side: int) -> None:
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)  # SDXL's decoder overflows in fp16; converted once here, not in every batch
    if side >= _SLICED_SIDE:
        vae.enable_slicing()


def _device(config: FamilyConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"family {config.name}: device: {config.device}: torch finds no CUDA; use auto or cpu")
    return torch.device(config.device)


def _dtype(config: FamilyConfig) -> torch.dtype:
    if config.dtype == "auto":
        return torch.float16 if _device(config).type == "cuda" else torch.float32
    if config.dtype == "float16" and _device(config).type == "cpu":
        raise ConfigError(f"family {config.name}: dtype: float16 does not run on the CPU; use auto or float32")
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[config.dtype]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

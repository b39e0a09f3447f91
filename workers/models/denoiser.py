"""One variant's denoiser, a call at a time: many images together, each with its own step, prompt and guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from workers.engine.engine import DenoiseJob
from workers.engine.samplers import Sampler, Schedule
from workers.models.linear import through_onednn
from workers.models.prompt_encoder import Text
from workers.models.weights import Pipeline, is_sdxl
from workers.models.weights_hash import weights_digest


@dataclass(slots=True, eq=False)
class InTheMaking:
    """One image between its first latent and its last; a :class:`workers.engine.engine.Sample`.

    Attributes:
        latent: float32 [C, H/f, W/f] that enters ``step``.
        negative: what guidance leads away from; None where guidance is off.
        keeps: the steps whose entering latents are kept; the number of steps itself stands for the finished one.
        kept: step and float16 latent on the host.
        estimate: the finished latent as the last step saw it coming; None before the first.
    """

    order: DenoiseJob
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

    samples: tuple[InTheMaking, ...]
    latents: torch.Tensor
    rows: torch.Tensor
    guided: torch.Tensor
    guidance: torch.Tensor
    conditions: dict[str, Any]


class Denoiser:
    """The UNet of one pipeline.

    Args:
        compiled: by ``torch.compile``.
        like: another variant's denoiser with the same UNet, which was prepared there; None prepares it here.

    Attributes:
        sampler: the variant's solver.
        revision: tells weights apart.
    """

    def __init__(self, pipeline: Pipeline, *, compiled: bool = False, like: Denoiser | None = None):
        self.sampler = Sampler(pipeline.scheduler)
        self.revision: str = like.revision if like else weights_digest(pipeline.unet)
        self._pipeline = pipeline
        self._device = pipeline.device
        self._unet: Any = like._unet if like else _prepared(pipeline.unet, self._device.type == "cuda", compiled)
        self._batch: _Batch | None = None

    def forget(self) -> None:
        """Lets go of the last call's tensors."""
        self._batch = None

    def step(self, samples: tuple[InTheMaking, ...]) -> list[bool]:
        """Advances every sample by one step; whether each latent is still finite."""
        batch = self._batch
        if batch is None or batch.samples != samples:
            batch = self._assemble(samples)
        before = batch.latents
        columns = torch.tensor([s.schedule.rows[s.step] for s in samples]).T.to(self._device)
        timesteps = columns[0]
        scale, keep, push = columns[1:, :, None, None, None]
        output = self._unet(
            (before * scale).to(self._pipeline.unet.dtype)[batch.rows],
            timesteps[batch.rows],
            return_dict=False,
            **batch.conditions,
        )[0].float()
        if len(batch.guided):
            output, negative = output[: len(samples)], output[len(samples) :]
            output[batch.guided] = negative + batch.guidance * (output[batch.guided] - negative)
        latents = keep * before + push * output
        finite = latents.flatten(1).isfinite().all(1)
        self._batch = _Batch(samples, latents, batch.rows, batch.guided, batch.guidance, batch.conditions)
        for i, sample in enumerate(samples):
            sample.estimate = _estimate(sample.schedule, sample.step, before[i], output[i])
            sample.latent = latents[i]
            sample.step += 1
            if sample.step in sample.keeps:
                sample.kept.append((sample.step, _to_host(sample.latent)))
        # Reading the flags waits for the device: no step is sent ahead, so that a late arrival finds no queue there.
        return finite.tolist()

    def _assemble(self, samples: tuple[InTheMaking, ...]) -> _Batch:
        pipeline = self._pipeline
        guided = [i for i, s in enumerate(samples) if s.negative is not None]
        negatives = [s.negative for s in samples if s.negative is not None]
        texts = [*(s.prompt for s in samples), *negatives]
        rows = torch.tensor([*range(len(samples)), *guided], device=self._device)
        scales = [samples[i].order.recipe.guidance for i in guided]
        conditions: dict[str, Any] = {"encoder_hidden_states": torch.stack([t.tokens for t in texts])}
        if is_sdxl(pipeline):
            conditions["added_cond_kwargs"] = {
                "text_embeds": torch.stack([t.pooled for t in texts if t.pooled is not None]),
                "time_ids": self._time_ids(samples[0]).expand(len(texts), -1),
            }
        if (width := pipeline.unet.config.time_cond_proj_dim) is not None:
            weights = torch.tensor([s.order.recipe.guidance - 1 for s in samples])
            embedded = pipeline.get_guidance_scale_embedding(weights, embedding_dim=width)
            conditions["timestep_cond"] = embedded.to(self._device, pipeline.unet.dtype)
        return _Batch(
            samples,
            torch.stack([s.latent for s in samples]),
            rows,
            rows[len(samples) :],
            torch.tensor(scales, device=self._device)[:, None, None, None],
            conditions,
        )

    def _time_ids(self, sample: InTheMaking) -> torch.Tensor:
        """SDXL's size conditions [1, 6]: drawn and cropped at the wanted size."""
        pipeline, recipe = self._pipeline, sample.order.recipe
        size = (recipe.height, recipe.width)
        width = pipeline.text_encoder_2.config.projection_dim
        ids = pipeline._get_add_time_ids(size, (0, 0), size, pipeline.unet.dtype, text_encoder_projection_dim=width)
        return ids.to(self._device)


def _estimate(schedule: Schedule, step: int, latent: torch.Tensor, output: torch.Tensor) -> Callable[[], torch.Tensor]:
    """x̂_0 [C, H/f, W/f] of one step, when somebody asks for it."""
    return lambda: float(schedule.from_x[step]) * latent + float(schedule.from_m[step]) * output


def _to_host(latent: torch.Tensor) -> torch.Tensor:
    """A float16 copy in host memory. From CUDA it is under way when this returns, and there when the step is over."""
    half = latent.half()
    if half.device.type != "cuda":
        return half if half is not latent else half.clone()
    return torch.empty(half.shape, dtype=half.dtype, pin_memory=True).copy_(half, non_blocking=True)


def _prepared(unet: Any, cuda: bool, compiled: bool) -> Any:
    """What is called in place of the UNet. Channels-last is what tensor cores read; on the CPU it gains nothing."""
    if cuda:
        unet.to(memory_format=torch.channels_last)
    if compiled:
        return torch.compile(unet, dynamic=True)
    if not cuda:
        through_onednn(unet)
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

"""One variant's denoiser: each call advances a batch of images, each at its own step, prompt and guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from workers.engine.engine import DenoiseJob
from workers.engine.samplers import Schedule
from workers.models.architectures.architecture import Architecture, Text
from workers.models.edits import Unchanged
from workers.models.linear import use_onednn
from workers.models.lora.adapter_store import AdapterSet
from workers.models.lora.low_rank import RowUpdate, applied, row_updates
from workers.models.weights_hash import weights_hash


@dataclass(slots=True, eq=False)
class DenoisingState:
    """The state of one image between two steps; a :class:`workers.engine.engine.Sample`.

    Attributes:
        latent: the latent that enters ``step``, float32 [C, H/f, W/f].
        history: what the sampler remembers of earlier steps, float32 [S - 1, C, H/f, W/f]; None before the first step.
        noise: generator of the noise that the steps add.
        unchanged: the parts that stay of a picture that is edited; None: everything is generated.
        negative: the encoded negative prompt; None without guidance.
        adapters: LoRA adapters of the denoiser, with their scales.
        keeps: steps whose entering latents are kept; the number of steps stands for the finished latent.
        kept: kept latents as (step, float16 latent in host memory).
        estimate: computes the finished latent that the last step predicted; None before the first step.
    """

    job: DenoiseJob
    schedule: Schedule
    step: int
    latent: torch.Tensor
    prompt: Text
    negative: Text | None
    keeps: frozenset[int]
    noise: torch.Generator
    adapters: AdapterSet = ()
    unchanged: Unchanged | None = None
    history: torch.Tensor | None = None
    kept: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    estimate: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tensors that a batch of B images, G of them guided, keeps from step to step.

    Attributes:
        kept: the latents that the samplers keep, the images' own first; float32 [B, S, C, H/f, W/f].
        rows: index of the image of each row of the call, [B + G]: all prompts, then the negative prompts of the guided
            images.
        guided: indices of the guided images, [G].
        guidance: their factors of classifier-free guidance, [G, 1, 1, 1].
        conditions: what the denoiser is conditioned on, by name, one row per row of the call.
        updates: what the images' adapters change of the denoiser's layers.
        shown: what an inpainting UNet takes besides the latents, one row per row of the call; None for another one.
    """

    samples: tuple[DenoisingState, ...]
    kept: torch.Tensor
    rows: torch.Tensor
    guided: torch.Tensor
    guidance: torch.Tensor
    conditions: dict[str, Any]
    updates: dict[str, RowUpdate]
    shown: torch.Tensor | None


class Denoiser:
    """The denoiser of one model.

    Args:
        compiled: whether to use ``torch.compile``.
        like: another variant's denoiser with the same weights, whose prepared module is reused; None prepares it.

    Attributes:
        revision: hash of the weights.
    """

    def __init__(self, model: Architecture, *, compiled: bool = False, like: Denoiser | None = None):
        self.revision: str = like.revision if like else weights_hash(model.denoiser)
        self._model = model
        self._device, self._dtype = model.device, model.denoiser.dtype
        self._module: Any = like._module if like else _prepare(model.denoiser, self._device.type == "cuda", compiled)
        self._batch: _Batch | None = None

    def forget(self) -> None:
        """Releases the last call's tensors."""
        self._batch = None

    def step(self, samples: tuple[DenoisingState, ...]) -> list[bool]:
        """Advances every sample by one step and returns for each whether its latent is finite."""
        batch = self._batch
        if batch is None or batch.samples != samples:
            batch = self._assemble(samples)
        count = batch.kept.shape[1]
        rows = torch.tensor([s.schedule.rows(count)[s.step] for s in samples]).to(self._device)
        timesteps, scale, mix, push, churn = rows.split([1, 1, count * count, count, count], 1)
        before, timesteps = batch.kept[:, 0], timesteps[:, 0]
        scaled = (before * scale[..., None, None]).to(self._dtype)[batch.rows]
        if batch.shown is not None:
            scaled = torch.cat([scaled, batch.shown], 1)
        output = self._output(scaled, timesteps[batch.rows], batch).float()
        if len(batch.guided):
            output, negative = output[: len(samples)], output[len(samples) :]
            output[batch.guided] = negative + batch.guidance * (output[batch.guided] - negative)
        kept = (_factors(mix.reshape(-1, count, count)) * batch.kept[:, None]).sum(2) + _factors(push) * output[:, None]
        if any(s.schedule.stochastic for s in samples):
            kept += _factors(churn) * torch.stack([_noise(s) for s in samples]).to(self._device)[:, None]
        finite = kept[:, 0].flatten(1).isfinite().all(1)
        for i, sample in enumerate(samples):
            if sample.unchanged is not None:
                kept[i, 0] = sample.unchanged.in_latent(kept[i, 0], sample.schedule, sample.step + 1)
        self._batch = replace(batch, samples=samples, kept=kept)
        for i, sample in enumerate(samples):
            sample.estimate = _estimate(sample.schedule, sample.step, before[i], output[i])
            sample.latent, sample.history = kept[i, 0], kept[i, 1 : sample.schedule.kept]
            sample.step += 1
            if sample.step in sample.keeps:
                sample.kept.append((sample.step, _to_host(sample.latent)))
        # Reading the flags waits for the device, so that no step is queued ahead of a late arrival.
        return finite.tolist()

    def _output(self, latents: torch.Tensor, timesteps: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """The denoiser's output. A compiled one has no place for adapters, so their images run without it."""
        if not batch.updates:
            return self._model.denoise(self._module, latents, timesteps, batch.conditions)
        with applied(self._model.denoiser, batch.updates):
            return self._model.denoise(self._model.denoiser, latents, timesteps, batch.conditions)

    def _assemble(self, samples: tuple[DenoisingState, ...]) -> _Batch:
        guided = [i for i, s in enumerate(samples) if s.negative is not None]
        texts = [*((s, s.prompt) for s in samples), *((s, s.negative) for s in samples if s.negative is not None)]
        conditions = [self._model.conditions(text, sample.job.recipe) for sample, text in texts]
        rows = torch.tensor([*range(len(samples)), *guided], device=self._device)
        scales = [self._model.guidance_factor(samples[i].job.recipe.guidance) for i in guided]
        count = max(s.schedule.kept for s in samples)
        adapters = [samples[i].adapters for i in (*range(len(samples)), *guided)]
        shown = [s.unchanged.channels for s in samples if s.unchanged is not None]
        inpaints = [it for it in shown if it is not None]  # all or none of the samples of a call
        return _Batch(
            samples,
            torch.stack([_kept(s, count) for s in samples]),
            rows,
            rows[len(samples) :],
            torch.tensor(scales, device=self._device)[:, None, None, None],
            self._model.stack(conditions),
            row_updates(self._model.denoiser, self._model.denoiser_part, adapters) if any(adapters) else {},
            torch.stack(inpaints).to(self._dtype)[rows] if inpaints else None,
        )


def _kept(sample: DenoisingState, count: int) -> torch.Tensor:
    """The latents that a sample keeps, padded with zeros to [``count``, C, H/f, W/f]."""
    kept = sample.latent.new_zeros((count, *sample.latent.shape))
    kept[0] = sample.latent
    if sample.history is not None:
        kept[1 : 1 + len(sample.history)] = sample.history
    return kept


def _factors(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients as factors of latents [..., C, H/f, W/f]."""
    return coefficients[..., None, None, None]


def _noise(sample: DenoisingState) -> torch.Tensor:
    """The noise of a sample's step on the CPU, like its initial noise; zeros if its sampler adds none."""
    if not sample.schedule.stochastic:
        return torch.zeros(sample.latent.shape)
    return torch.randn(sample.latent.shape, generator=sample.noise)


def _estimate(schedule: Schedule, step: int, latent: torch.Tensor, output: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that computes x̂_0 [C, H/f, W/f] of one step."""
    return lambda: float(schedule.from_x[step]) * latent + float(schedule.from_m[step]) * output


def _to_host(latent: torch.Tensor) -> torch.Tensor:
    """A float16 copy in host memory. From CUDA, the copy is asynchronous and complete when the step ends."""
    half = latent.half()
    if half.device.type != "cuda":
        return half if half is not latent else half.clone()
    return torch.empty(half.shape, dtype=half.dtype, pin_memory=True).copy_(half, non_blocking=True)


def _prepare(denoiser: Any, cuda: bool, compiled: bool) -> Any:
    """Prepares a denoiser and returns what to call. Tensor cores need channels-last; the CPU does not gain by it."""
    if cuda:
        denoiser.to(memory_format=torch.channels_last)
    if compiled:
        return torch.compile(denoiser, dynamic=True)
    if not cuda:
        use_onednn(denoiser)
    for module in denoiser.modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            for projection in (module.to_k, module.to_v):
                projection.forward = _cached(projection.forward)
    return denoiser


def _cached(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Caches the last output: keys and values of the prompts only change when the batch changes."""
    last_input: torch.Tensor | None = None
    last_output: torch.Tensor | None = None

    def cached(states: torch.Tensor) -> torch.Tensor:
        nonlocal last_input, last_output
        if last_output is None or states is not last_input:
            last_input, last_output = states, forward(states)
        return last_output

    return cached

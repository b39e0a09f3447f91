"""A family's models, resident on one device: the engine that draws real pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from PIL import Image

from weir.config import FamilyConfig
from weir.core import ImageRequest, Role
from weir.errors import ConfigError, GenerationFailed
from workers.batching import Recipe
from workers.engine import Drawn, OutOfMemory, recipe
from workers.weights import Pipeline, is_sdxl, load_pipelines

#: From this side on the decoder takes images one by one: each fills a device, and a batch would need memory for all.
_SLICED_SIDE = 512
_WARM_UP_STEPS = 2


class Confidence(Protocol):
    """What the family needs of a discriminator; images are [B, 3, H, W] in −1…1, answers 0…1."""

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]: ...


class Family:
    """Light and heavy pipeline and the discriminator; implements :class:`workers.engine.Engine`.

        family = Family.load(load_family("deploy/families/weir-tiny.yaml"))
        [drawn] = family.generate(Role.LIGHT, [request])

    The picture of a request depends on its own fields alone (to numerical noise): its noise comes from its seed, drawn
    on the CPU so that every device starts from the same, and its negative prompt is encoded as if it were alone.
    """

    emulated = False

    def __init__(self, config: FamilyConfig, pipelines: dict[Role, Pipeline], discriminator: Confidence | None = None):
        self.config = config
        self.pipelines = pipelines
        self.discriminator = discriminator
        self.device = pipelines[Role.LIGHT].device
        self.beat = time.monotonic()
        self._encoders = ThreadPoolExecutor(4, thread_name_prefix="png")
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

    def generate(self, role: Role, requests: Sequence[ImageRequest]) -> list[Drawn]:
        shared = recipe(self.config, role, requests[0])
        try:
            with torch.inference_mode():
                return self._generate(shared, requests)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Out of the handler: the exception's frames would keep the batch's tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(f"a batch of {len(requests)} at {shared.width} px does not fit {self.device}")

    def _generate(self, shared: Recipe, requests: Sequence[ImageRequest]) -> list[Drawn]:
        self.beat = time.monotonic()
        pipeline = self.pipelines[shared.role]
        latents = pipeline(
            **self._encode(pipeline, shared.guidance, requests),
            latents=self._noise(pipeline, requests),
            height=shared.height,
            width=shared.width,
            num_inference_steps=shared.steps,
            guidance_scale=shared.guidance,
            output_type="latent",
            callback_on_step_end=self._on_step,
            return_dict=False,
        )[0]
        images = decode(pipeline.vae, latents)
        confidences: list[float] | list[None] = [None] * len(requests)
        if shared.role is Role.LIGHT and self.discriminator is not None:
            confidences = self.discriminator.confidence(images.nan_to_num(), [r.prompt for r in requests])
        finite = images.isfinite().flatten(1).all(1).tolist()
        pictures = self._encoders.map(to_png, to_pixels(images))
        return [
            Drawn(png, c, shared.steps) if fine else Drawn(b"", None, shared.steps, _NOT_FINITE)
            for png, c, fine in zip(pictures, confidences, finite, strict=True)
        ]

    def _on_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.beat = time.monotonic()
        return {}

    def _noise(self, pipeline: Pipeline, requests: Sequence[ImageRequest]) -> torch.Tensor:
        """Initial latents [B, C, H/f, W/f] of unit variance, one seed each."""
        first, factor = requests[0], pipeline.vae_scale_factor
        shape = (pipeline.unet.config.in_channels, first.height // factor, first.width // factor)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(r.seed)) for r in requests]
        return torch.stack(noise).to(self.device, pipeline.unet.dtype)

    def _encode(self, pipeline: Pipeline, guidance: float, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """The pipeline's embedding arguments.

        SDXL stands zeros in for an empty negative prompt, but only if the whole batch has none; here every request gets
        what it would get alone.
        """
        prompts = [r.prompt for r in requests]
        negatives = [r.negative_prompt for r in requests]
        guided = guidance > 1 and pipeline.unet.config.time_cond_proj_dim is None
        arguments: dict[str, Any] = {
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
            "negative_prompt": negatives if guided and any(negatives) else None,
        }
        if not is_sdxl(pipeline):
            positive, negative = pipeline.encode_prompt(prompts, **arguments)
            return {"prompt_embeds": positive, "negative_prompt_embeds": negative if guided else None}
        positive, negative, pooled, negative_pooled = pipeline.encode_prompt(prompts, **arguments)
        if guided and pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([not n for n in negatives], device=negative.device)
            negative = negative.masked_fill(empty[:, None, None], 0)
            negative_pooled = negative_pooled.masked_fill(empty[:, None], 0)
        return {
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative if guided else None,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled if guided else None,
        }

    def warm_up(self, batch_size: int) -> None:
        size = self.config.size
        for role in Role:
            for batch in sorted({1, batch_size}):
                self.generate(
                    role,
                    [
                        ImageRequest(f"warm-up-{i}", "", i, size, size, float("inf"), steps=_WARM_UP_STEPS)
                        for i in range(batch)
                    ],
                )

    def probe(self) -> None:
        value = torch.ones(8, device=self.device).sum().item()
        if value != 8:
            raise GenerationFailed(f"{self.device} adds eight ones to {value}")


_NOT_FINITE = ("generation_failed", "the picture came out as not-a-number; try another seed or dtype: float32")


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
    # Level 1: a fifth of the time of the default for a few per cent more bytes, and the device waits meanwhile.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


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

"""From finished latents to PNG pictures, off the step loop's critical path wherever that pays."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image

from weir.errors import NotFinite
from workers.engine.engine import EngineOutput, failed, wants_judge
from workers.engine.previews import Previews
from workers.models.denoiser import InTheMaking
from workers.models.device import within_memory
from workers.models.weights import Pipeline

log = logging.getLogger(__name__)

NOT_FINITE = "the picture came out as not-a-number; try another seed or dtype: float32"
#: From this side on the decoder takes images one by one: each fills a device, and a batch would need memory for all.
_SLICED_SIDE = 512


class Confidence(Protocol):
    """What the family needs of a discriminator; images are [B, 3, H, W] in −1…1, answers 0…1."""

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]: ...


@runtime_checkable
class Seeing(Protocol):
    """A discriminator that can look now and judge later, under another prompt; float16 [B, F] of images."""

    def see(self, images: torch.Tensor) -> torch.Tensor: ...


class Judged(NamedTuple):
    """Of one picture: the discriminator's confidence, and what it has seen for later prompts; None where not asked."""

    confidence: float | None = None
    seen: bytes | None = None


class Pictures:
    """Decodes, judges and encodes the samples whose steps have all run.

    Args:
        judges: by variant, None where it has none. The last variant's judges images that ask for it, and looks at those
            whose states are kept.
        aside: decode in a thread (on CUDA also a stream) of its own; None does so on CUDA. On the CPU the decoder
            would compete with the next step for the same core.
        side: of the largest images, in pixels.
        drawn: what a finished sample's answer is made of: its picture, and the discriminator's word.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        judges: Mapping[str, Confidence | None],
        drawn: Callable[[InTheMaking, bytes, Judged], EngineOutput],
        *,
        side: int,
        aside: bool | None = None,
    ):
        self.previews = Previews()
        self._judges = judges
        self._vaes = {key: pipeline.vae for key, pipeline in pipelines.items()}
        self._last = list(pipelines)[-1]
        self._drawn = drawn
        self._device = pipelines[self._last].device
        self._encoders = ThreadPoolExecutor(4, thread_name_prefix="png")
        cuda = self._device.type == "cuda"
        aside = cuda if aside is None else aside
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode") if aside else None
        self._stream = torch.cuda.Stream(self._device) if cuda and aside else None
        for vae in self._vaes.values():
            if vae.dtype == torch.float16 and vae.config.force_upcast:
                vae.to(torch.float32)  # SDXL's decoder overflows in fp16; converted once here, not in every batch
            if side >= _SLICED_SIDE:
                vae.enable_slicing()

    def finish(self, samples: Sequence[InTheMaking]) -> list[Future[EngineOutput]]:
        """Never raises: a failure is an answer."""
        if self._decoder is None:
            return self._finish(samples)
        promised: list[Future[EngineOutput]] = [Future() for _ in samples]
        # The latents are there: the last step waited for them.
        self._decoder.submit(self._finish_aside, samples, promised)
        return promised

    def preview(self, latent: torch.Tensor) -> bytes | None:
        """A small PNG of an estimated finished latent [C, H/f, W/f]; None before the first image."""
        image = self.previews.image(latent[None])
        return None if image is None else to_png(to_pixels(image)[0])

    def _finish_aside(self, samples: Sequence[InTheMaking], promised: list[Future[EngineOutput]]) -> None:
        with torch.cuda.stream(self._stream):
            for future, answer in zip(self._finish(samples), promised, strict=True):
                future.add_done_callback(partial(_pass_on, answer))

    def _finish(self, samples: Sequence[InTheMaking]) -> list[Future[EngineOutput]]:
        """A batch that fails is halved until it fits, or the one image that breaks it is alone."""
        try:
            what = f"decoding {len(samples)} images at {samples[0].order.recipe.width} px"
            images, judged = within_memory(self._device, lambda: self._decode(samples), what, lambda: None)
        except Exception as error:
            log.warning("%d images could not be decoded: %s: %s", len(samples), type(error).__name__, error)
            if len(samples) == 1:
                return [self._encoders.submit(failed, error)]
        else:
            pixels = to_pixels(images)
            finite = images.isfinite().flatten(1).all(1).tolist()
            rows = zip(samples, pixels, judged, finite, strict=True)
            return [self._encoders.submit(self._picture, *row) for row in rows]
        middle = (len(samples) + 1) // 2
        return [*self._finish(samples[:middle]), *self._finish(samples[middle:])]

    def _decode(self, samples: Sequence[InTheMaking]) -> tuple[torch.Tensor, list[Judged]]:
        variant = samples[0].order.recipe.variant
        is_last, discriminator = variant == self._last, self._judges[variant]
        latents = torch.stack([s.latent for s in samples])
        images = decode(self._vaes[variant], latents)
        self.previews.learn(latents, images)
        requests, looked = [s.order.request for s in samples], images.nan_to_num()
        judge = [not is_last or wants_judge(r) for r in requests]
        confidences: Sequence[float | None] = [None] * len(samples)
        seen: Sequence[bytes | None] = [None] * len(samples)
        if discriminator is not None and any(judge):
            confidences = discriminator.confidence(looked, [r.prompt for r in requests])
        if isinstance(discriminator, Seeing) and is_last and any(r.capture is not None for r in requests):
            seen = [row.tobytes() for row in discriminator.see(looked).numpy()]
        return images, [
            Judged(c if judged else None, s if r.capture is not None else None)
            for r, c, s, judged in zip(requests, confidences, seen, judge, strict=True)
        ]

    def _picture(self, sample: InTheMaking, pixels: Any, judged: Judged, finite: bool) -> EngineOutput:
        """Needs no device any more."""
        return self._drawn(sample, to_png(pixels), judged) if finite else failed(NotFinite(NOT_FINITE))


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


def _pass_on(to: Future[EngineOutput], done: Future[EngineOutput]) -> None:
    if (error := done.exception()) is None:
        to.set_result(done.result())
    else:
        to.set_exception(error)

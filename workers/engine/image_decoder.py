"""Decodes finished latents to PNG images, off the step loop's critical path where that is faster."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import compress
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image

from weir import tracing
from weir.core import ImageRequest
from weir.errors import Blocked, NotFinite
from weir.logs import request_ids
from weir.prompts import plain_text
from workers.engine.engine import EngineOutput, failed, wants_judge
from workers.engine.previews import Previews
from workers.models.architectures.architecture import Architecture
from workers.models.denoiser import DenoisingState
from workers.models.device import within_memory
from workers.models.safety import SafetyChecker

log = logging.getLogger(__name__)

NOT_FINITE = "the image holds values that are not finite numbers; try another seed or dtype: float32"
#: From this number of pixels on, the VAE decodes the images of a batch one by one, to save memory.
_SLICED_PIXELS = 512**2


class Confidence(Protocol):
    """A judge of images [B, 3, H, W] in −1…1; its confidences are 0…1."""

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]: ...


@runtime_checkable
class Seeing(Protocol):
    """A judge that can store features of images, float16 [B, F], and judge them later for other prompts."""

    def see(self, images: torch.Tensor) -> torch.Tensor: ...


class Judged(NamedTuple):
    """Verdict on one image: the judge's confidence and its stored features, None where not requested, and whether the
    safety checker blocks it."""

    confidence: float | None = None
    seen: bytes | None = None
    blocked: bool = False


class ImageDecoder:
    """Decodes, judges and encodes the samples whose steps have all run.

    Args:
        judges: judge of each variant, or None. The last variant's judge is used only for requests that ask for a
            verdict, and to store features of images whose states are captured.
        checker: checks images before anybody sees them; None: none is checked.
        output: builds the engine's output of a sample from its PNG and verdict.
        aside: whether to decode in a separate thread, on CUDA also in a separate stream; None: only on CUDA. On the
            CPU, the decoder would compete with the next step for the same core.
    """

    def __init__(
        self,
        models: Mapping[str, Architecture],
        judges: Mapping[str, Confidence | None],
        checker: SafetyChecker | None,
        output: Callable[[DenoisingState, bytes, Judged], EngineOutput],
        *,
        aside: bool | None = None,
    ):
        self.previews = Previews()
        self._judges = judges
        self._checker = checker
        self._models = models
        self._last = list(models)[-1]
        self._output = output
        self._device = models[self._last].device
        self._encoders = ThreadPoolExecutor(4, thread_name_prefix="png")
        cuda = self._device.type == "cuda"
        aside = cuda if aside is None else aside
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode") if aside else None
        self._stream = torch.cuda.Stream(self._device) if cuda and aside else None
        for vae in (model.vae for model in models.values()):
            if vae.dtype == torch.float16 and vae.config.force_upcast:
                vae.to(torch.float32)  # SDXL's VAE overflows in float16; converted once here, not in every batch

    def finish(self, samples: Sequence[DenoisingState]) -> list[Future[EngineOutput]]:
        """Decodes, judges and encodes samples. Never raises: a failure is an output."""
        if self._decoder is None:
            return self._finish(samples)
        promised: list[Future[EngineOutput]] = [Future() for _ in samples]
        # The latents are complete: the last step waited for them.
        self._decoder.submit(self._finish_aside, samples, promised)
        return promised

    def preview(self, latent: torch.Tensor) -> bytes | None:
        """A small PNG of an estimated finished latent [C, H/f, W/f]; None before the first decoded image."""
        image = self.previews.image(latent[None])
        return None if image is None else to_png(to_pixels(image)[0])

    def _finish_aside(self, samples: Sequence[DenoisingState], promised: list[Future[EngineOutput]]) -> None:
        with torch.cuda.stream(self._stream):
            for future, answer in zip(self._finish(samples), promised, strict=True):
                future.add_done_callback(partial(_pass_on, answer))

    def _finish(self, samples: Sequence[DenoisingState]) -> list[Future[EngineOutput]]:
        """Splits a batch that fails in halves until it fits or the failing image is alone."""
        try:
            recipe = samples[0].job.recipe
            what = f"decoding {len(samples)} images at {recipe.size} px"
            images, judged = within_memory(self._device, lambda: self._decode(samples), what, lambda: None)
        except Exception as error:
            of = request_ids(sample.job.request.request_id for sample in samples)
            log.warning("Decoding %d images failed: %s: %s", len(samples), type(error).__name__, error, extra=of)
            if len(samples) == 1:
                return [self._encoders.submit(failed, error)]
        else:
            pixels = to_pixels(images)
            finite = images.isfinite().flatten(1).all(1).tolist()
            rows = zip(samples, pixels, judged, finite, strict=True)
            return [self._encoders.submit(self._encode, *row) for row in rows]
        middle = (len(samples) + 1) // 2
        return [*self._finish(samples[:middle]), *self._finish(samples[middle:])]

    def _decode(self, samples: Sequence[DenoisingState]) -> tuple[torch.Tensor, list[Judged]]:
        variant = samples[0].job.recipe.variant
        is_last, discriminator = variant == self._last, self._judges[variant]
        latents = torch.stack([s.latent for s in samples])
        vae = self._models[variant].vae
        if samples[0].job.recipe.size.pixels >= _SLICED_PIXELS:
            vae.enable_slicing()
        else:
            vae.disable_slicing()
        images = self._models[variant].decode(latents)
        self.previews.learn(latents, images)
        for row, sample in enumerate(samples):
            if sample.unchanged is not None:
                images[row] = sample.unchanged.in_image(images[row])
        requests, looked = [s.job.request for s in samples], images.nan_to_num()
        judge = [not is_last or wants_judge(r) for r in requests]
        confidences: Sequence[float | None] = [None] * len(samples)
        seen: Sequence[bytes | None] = [None] * len(samples)
        if discriminator is not None and any(judge):
            with tracing.span_of_each("judge", compress(requests, judge)):
                confidences = discriminator.confidence(
                    looked, [plain_text(r.prompt, r.prompt_syntax) for r in requests]
                )
        if isinstance(discriminator, Seeing) and is_last and any(r.capture is not None for r in requests):
            seen = [row.tobytes() for row in discriminator.see(looked).numpy()]
        blocked = self._blocked(looked, requests)
        return images, [
            Judged(c if judged else None, s if r.capture is not None else None, b)
            for r, c, s, judged, b in zip(requests, confidences, seen, judge, blocked, strict=True)
        ]

    def _blocked(self, images: torch.Tensor, requests: Sequence[ImageRequest]) -> list[bool]:
        blocked = [False] * len(requests)
        checked = [i for i, request in enumerate(requests) if request.moderation != "off"]
        if self._checker is not None and checked:
            with tracing.span_of_each("check", [requests[i] for i in checked]):
                verdicts = self._checker.blocked(images[checked], [requests[i].moderation for i in checked])
            for i, verdict in zip(checked, verdicts, strict=True):
                blocked[i] = bool(verdict)
        return blocked

    def _encode(self, sample: DenoisingState, pixels: Any, judged: Judged, finite: bool) -> EngineOutput:
        """The output of one image, encoded as PNG on the CPU."""
        if not finite:
            return failed(NotFinite(NOT_FINITE))
        if judged.blocked:
            return failed(Blocked("the safety checker blocked the image; ask for something else"))
        with tracing.span_of_each("encode", [sample.job.request]):
            png = to_png(pixels)
        return self._output(sample, png, judged)


def to_pixels(images: torch.Tensor) -> list[Any]:
    """Converts images [B, 3, H, W] in −1…1 to B arrays uint8 [H, W, 3]."""
    scaled = (images.nan_to_num() / 2 + 0.5).clamp(0, 1) * 255
    return list(scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def to_png(pixels: Any) -> bytes:
    """Encodes an array uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    # Level 1 takes a fifth of the default's time for a few per cent more bytes, and the client waits meanwhile.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _pass_on(to: Future[EngineOutput], done: Future[EngineOutput]) -> None:
    """Copies the result or exception of ``done`` to ``to``."""
    if (error := done.exception()) is None:
        to.set_result(done.result())
    else:
        to.set_exception(error)

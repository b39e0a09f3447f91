"""What a client asked for, checked and with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from load_balancer.http.api_keys import ANONYMOUS, Caller
from weir.cascade import CacheMode

ImageFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One valid request for images.

    Attributes:
        variant: key of the variant that the client names; None lets the cascade decide.
        seed: of the first image, the next ones count up; None draws one at admission.
        steps, guidance: instead of the last variant's own.
        cache: what this request does with the approximate cache; None: as the service says.
        caller: who asks; its tenant says whose states it may reuse, and who may reuse its own.
        stream: whether images are sent as they come.
        partial_images: how many pictures are sent at most before each finished one; 0 without ``stream``.
        compression: quality of jpeg and webp, 0…100.
        requested_size: the size that was asked for where the images get another one.
    """

    prompt: str
    width: int
    height: int
    n: int = 1
    variant: str | None = None
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    cache: CacheMode | None = None
    caller: Caller = ANONYMOUS
    stream: bool = False
    partial_images: int = 0
    response_format: Literal["url", "b64_json"] = "b64_json"
    output_format: ImageFormat = "png"
    compression: int = 100
    quality: str = "auto"
    background: str = "opaque"
    requested_size: str | None = None

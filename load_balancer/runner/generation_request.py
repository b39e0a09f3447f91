"""A client's request, checked and with all defaults filled in."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field, fields
from typing import Literal

from load_balancer.http.api_keys import ANONYMOUS, Caller
from weir.adapters import AdapterUse
from weir.cascade import CacheMode
from weir.core import Edit, ImageSize
from weir.moderation import Moderation, level_of
from weir.prompts import PromptSyntax
from weir.samplers import Scheduler

ImageFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One valid request for images.

    Attributes:
        variant: key of the variant that the client names; None lets the cascade decide.
        seed: seed of the first image, the next ones count up; None: chosen at random at admission.
        steps, guidance, sampler: replace the last variant's own.
        adapters: LoRA adapters of every variant, by name in ascending order.
        edit: the picture that it edits; None: its images start from noise.
        cache: cache mode of this request; None: the service's mode.
        caller: the sender; its tenant determines which states the request may reuse, and which requests may reuse its
            states.
        stream: whether images are sent as soon as they are ready.
        partial_images: largest number of partial images before each finished one; 0 without ``stream``.
        moderation: how strictly to moderate; None: as the caller's key says.
        compression: quality of jpeg and webp, 0…100.
        requested_size: the requested size, if the images have another one.
        id: names the request in responses and logs. It may come from the client, so it is neither secret nor unique;
            requests that differ only in it are equal.

    Requests of callers that differ are equal, too: a key's quota may be edited between two repetitions of a request.
    """

    prompt: str
    size: ImageSize
    n: int = 1
    variant: str | None = None
    negative_prompt: str = ""
    prompt_syntax: PromptSyntax = "plain"
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: Scheduler | None = None
    adapters: tuple[AdapterUse, ...] = ()
    edit: Edit | None = None
    cache: CacheMode | None = None
    caller: Caller = field(default=ANONYMOUS, compare=False)
    stream: bool = False
    partial_images: int = 0
    moderation: Literal["auto", "low"] | None = None
    response_format: Literal["url", "b64_json"] = "b64_json"
    output_format: ImageFormat = "png"
    compression: int = 100
    quality: str = "auto"
    background: str = "opaque"
    requested_size: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    @property
    def level(self) -> Moderation:
        """How strictly the request is moderated.

        Raises:
            InvalidRequest: it asks for less than its caller is allowed.
        """
        return level_of(self.moderation, self.caller.moderation)

    @property
    def digest(self) -> bytes:
        """Digest of the fields by which requests are compared."""
        compared = [getattr(self, it.name) for it in fields(self) if it.compare]
        digest = hashlib.blake2b(repr(compared).encode(), digest_size=16)
        if self.edit is not None:
            for picture in (self.edit.image, self.edit.mask or b""):
                digest.update(hashlib.blake2b(picture).digest())
        return digest.digest()

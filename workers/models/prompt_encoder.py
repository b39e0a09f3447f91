"""Encodes prompts for the denoiser and caches the encodings per tenant.

Tenants do not share encodings, because the latency of an image would reveal whether another tenant used the same
prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from workers.models.weights import Pipeline, is_sdxl

#: A tenant and its prompt.
TenantText = tuple[str, str]
#: Number of encodings to keep. One of SDXL takes 310 KiB.
_KEPT = 512


@dataclass(frozen=True, slots=True)
class Text:
    """An encoded prompt: token states [T, D] and, for SDXL, the pooled embedding [P]."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None

    def zeros(self) -> Text:
        return Text(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))


class PromptEncoder:
    """Encodes prompts with the text encoders of each pipeline; evicts the least recently used encodings."""

    def __init__(self, device: torch.device):
        self._device = device
        self._known: OrderedDict[tuple[int, TenantText], Text] = OrderedDict()

    def read(self, pipeline: Pipeline, texts: Iterable[TenantText]) -> dict[TenantText, Text]:
        """The encodings of ``texts``; those that are not cached are encoded in one batch."""
        encoder, wanted = id(pipeline.text_encoder), sorted(set(texts))
        if new := [key for key in wanted if (encoder, key) not in self._known]:
            encoded = pipeline.encode_prompt(
                [text for _, text in new],
                device=self._device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            pooled = encoded[2] if is_sdxl(pipeline) else [None] * len(new)
            for key, tokens, whole in zip(new, encoded[0], pooled, strict=True):
                self._known[encoder, key] = Text(tokens, whole)
        for key in wanted:
            self._known.move_to_end((encoder, key))
        found = {key: self._known[encoder, key] for key in wanted}
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

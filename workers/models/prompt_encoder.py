"""Prompts as the denoiser reads them. What a tenant has said before is not encoded again.

What another one has said is: how long an image takes would tell whether anybody had asked for the same words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from workers.models.weights import Pipeline, is_sdxl

#: A tenant and its text.
Said = tuple[str, str]
#: PromptEncoder whose encodings are kept. One of SDXL's takes 310 KiB.
_KEPT = 512


@dataclass(frozen=True, slots=True)
class Text:
    """Token states [T, D] and, of SDXL, the pooled text [P]."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None

    def zeros(self) -> Text:
        return Text(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))


class PromptEncoder:
    """The encodings of a family's pipelines, each by its own text encoders; those read longest ago leave first."""

    def __init__(self, device: torch.device):
        self._device = device
        self._known: OrderedDict[tuple[int, Said], Text] = OrderedDict()

    def read(self, pipeline: Pipeline, texts: Iterable[Said]) -> dict[Said, Text]:
        """The encodings of ``texts``; those that are new to their tenants are encoded in one go."""
        encoder, wanted = id(pipeline.text_encoder), sorted(set(texts))
        if new := [said for said in wanted if (encoder, said) not in self._known]:
            encoded = pipeline.encode_prompt(
                [text for _, text in new],
                device=self._device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            pooled = encoded[2] if is_sdxl(pipeline) else [None] * len(new)
            for said, tokens, whole in zip(new, encoded[0], pooled, strict=True):
                self._known[encoder, said] = Text(tokens, whole)
        for said in wanted:
            self._known.move_to_end((encoder, said))
        found = {said: self._known[encoder, said] for said in wanted}
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

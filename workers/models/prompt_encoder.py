"""Encodes prompts for the denoiser and caches the encodings per tenant.

Tenants do not share encodings, because the latency of an image would reveal whether another tenant used the same
prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack

from weir.prompts import Prompt, PromptPart
from workers.models.architectures.architecture import Architecture, Text
from workers.models.lora.adapter_store import AdapterSet
from workers.models.lora.low_rank import applied, row_updates

#: A tenant and its prompt.
TenantText = tuple[str, Prompt]
#: A prompt without text.
EMPTY: Prompt = (PromptPart(""),)
#: Memory of the encodings that are kept. One of SDXL takes 310 KiB, one of FLUX.1-dev 4 MiB.
_BOUND_BYTES = 256 * 2**20


class PromptEncoder:
    """Encodes prompts with the text encoders of each model; evicts the least recently used encodings."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, TenantText], Text] = OrderedDict()
        self._size_bytes = 0

    def empty(self, model: Architecture, tenant: str, adapters: AdapterSet = ()) -> Text:
        """The encoding of an empty text."""
        return self.read(model, [(tenant, EMPTY)], adapters)[tenant, EMPTY]

    def read(
        self, model: Architecture, texts: Iterable[TenantText], adapters: AdapterSet = ()
    ) -> dict[TenantText, Text]:
        """The encodings of ``texts``; those that are not cached are encoded in one batch.

        Args:
            adapters: applied to the text encoders, if they have updates of them.
        """
        own = tuple(it for it in adapters if not it.adapter.updates.keys().isdisjoint(model.text_encoders))
        encoder, wanted = (model.text_key, *((it.adapter.id, it.scale) for it in own)), sorted(set(texts))
        if new := [key for key in wanted if (encoder, key) not in self._known]:
            for key, encoded in zip(new, _encoded(model, [text for _, text in new], own), strict=True):
                self._known[encoder, key] = encoded
                self._size_bytes += encoded.size_bytes
        for key in wanted:
            self._known.move_to_end((encoder, key))
        found = {key: self._known[encoder, key] for key in wanted}
        while self._size_bytes > _BOUND_BYTES:
            self._size_bytes -= self._known.popitem(last=False)[1].size_bytes
        return found


def _encoded(model: Architecture, texts: list[Prompt], adapters: AdapterSet) -> list[Text]:
    with ExitStack() as stack:
        for part in model.text_encoders if adapters else ():
            module = model.part(part)
            stack.enter_context(applied(module, row_updates(module, part, [adapters])))
        return model.encode(texts)

"""What ``/v1/models`` says about each model: sizes, samplers, and its own values of what a request may replace."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from weir.cascade import CacheMode
from weir.config import FamilyConfig
from weir.image_sizes import AllowedSizes

#: A guidance scale up to this value runs the denoiser without guidance, and so without a negative prompt.
NO_GUIDANCE = 1.0


class ModelList:
    """The models of one service, by name.

    Args:
        sizes: of images, within the limits of the service.
        variants: variants by model name, aliases included; None is the cascade.
        aliases: additional model names → the models they stand for.
        adapters: LoRA adapters by name, which may change.
        cache_mode: cache mode of requests that do not set one; None: there is no cache.
        created: unix time, seconds.
    """

    def __init__(
        self,
        family: FamilyConfig,
        sizes: AllowedSizes,
        variants: Mapping[str, str | None],
        aliases: Mapping[str, str],
        adapters: Collection[str],
        cache_mode: CacheMode | None,
        created: int,
    ):
        self._adapters = adapters
        self._models = {
            name: {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "weir",
                "root": aliases.get(name, name),
                "sizes": [str(size) for size in sizes],
                "any_size": None if sizes.others is None else sizes.others.model_dump(),
                "samplers": list(family.samplers_of(variant or family.keys[-1])),
                "defaults": defaults(family, variant, cache_mode),
            }
            for name, variant in variants.items()
        }

    def one(self, name: str) -> dict[str, Any]:
        """The description of an existing model."""
        return {**self._models[name], "adapters": list(self._adapters)}

    def all(self) -> dict[str, Any]:
        """OpenAI's list of models."""
        return {"object": "list", "data": [self.one(name) for name in self._models]}


def defaults(family: FamilyConfig, variant: str | None, cache_mode: CacheMode | None) -> dict[str, Any]:
    """A model's own values of the request's fields that are meant to be replaced; the others do not suit it.

    Steps, guidance and the cache belong to the last variant, alone or at the end of the cascade. A variant without
    guidance uses neither a guidance scale nor a negative prompt.
    """
    last = family.keys[-1]
    config = family.variants[variant or last]
    guided, is_last = config.guidance > NO_GUIDANCE, variant in (None, last)
    fields: dict[str, Any] = {"size": str(family.size)}
    if guided:
        fields["negative_prompt"] = ""
    if is_last:
        fields["num_inference_steps"] = config.steps
        fields["sampler"] = config.scheduler
    if is_last and guided:
        fields["guidance_scale"] = config.guidance
    if is_last and cache_mode is not None:
        fields["cache"] = cache_mode
    return fields

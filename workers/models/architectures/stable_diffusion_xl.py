"""Stable Diffusion XL: two text encoders, and conditions on the pooled prompt and on sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from workers.models.architectures.architecture import Configs, Mismatch, Pipeline, Text
from workers.models.architectures.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    import torch

    from weir.samplers import Scheduler
    from workers.engine.scheduling import Recipe
    from workers.models.architectures.prompt_windows import Window

#: Number of the UNet's size conditions: original size, crop and target size.
_SIZES = 6


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL."""

    pipeline_class = "StableDiffusionXLPipeline"
    inpainting_class = "StableDiffusionXLInpaintPipeline"
    loading: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}
    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    single_file_encoders = (
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        "conditioner.embedders.1.model.positional_embedding",
    )
    inversion_tensors = ("clip_l", "clip_g")
    addition_embed_type = "text_time"

    # ----------------------------------------------------------------------------------------- checkpoints

    @classmethod
    def mismatches(cls, configs: Configs, samplers: Sequence[Scheduler]) -> Iterator[Mismatch]:
        yield from super().mismatches(configs, samplers)
        unet, pooled = configs["unet"], configs["text_encoder_2"].get("projection_dim", 0)
        sizes = _SIZES * (unet.get("addition_time_embed_dim") or 0)
        if (given := unet.get("projection_class_embeddings_input_dim")) != sizes + pooled:
            yield Mismatch(
                "unet",
                f"projection_class_embeddings_input_dim is {given}; the pooled prompt and the {_SIZES} sizes have "
                f"{sizes + pooled}",
                "use the UNet of a text-to-image model; SDXL's refiner is none",
            )

    @classmethod
    def assemble(cls, base: Pipeline, **parts: Any) -> Pipeline:
        zeros = base.config.force_zeros_for_empty_prompt
        components = {**base.components, **parts}
        return type(base)(**components, force_zeros_for_empty_prompt=zeros, add_watermarker=False)

    # ---------------------------------------------------------------------------------------------- models

    @property
    def zeros_for_no_negative(self) -> bool:
        return bool(self.pipeline.config.force_zeros_for_empty_prompt)

    def conditions(self, text: Text, recipe: Recipe) -> dict[str, torch.Tensor]:
        size = (recipe.size.height, recipe.size.width)
        states = text.tensors["encoder_hidden_states"]
        # Original and target size are the image's size, without a crop.
        sizes = states.new_tensor([*size, 0, 0, *size], dtype=self.pipeline.unet.dtype)
        return {**super().conditions(text, recipe), "time_ids": sizes}

    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        added = {name: conditions[name] for name in ("text_embeds", "time_ids")}
        others = {name: tensor for name, tensor in conditions.items() if name not in added}
        return denoiser(latents, timesteps, return_dict=False, added_cond_kwargs=added, **others)[0]

    def _encode_windows(
        self, number: int, windows: Sequence[Window], without: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = self._encoder_output(number, windows, without, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    def scaled(self, encoded: torch.Tensor) -> torch.Tensor:
        if (statistics := self._statistics(encoded)) is None:
            return super().scaled(encoded)
        mean, std = statistics
        return (encoded - mean) * self.vae.config.scaling_factor / std

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        if (statistics := self._statistics(latents)) is None:
            return super().unscaled(latents)
        mean, std = statistics
        return latents * std / self.vae.config.scaling_factor + mean

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and standard deviation of the VAE's latents by channel, [C, 1, 1], where its configuration has both."""
        mean, std = self.vae.config.get("latents_mean"), self.vae.config.get("latents_std")
        if mean is None or std is None:  # diffusers ignores one without the other
            return None
        return latents.new_tensor(mean)[:, None, None], latents.new_tensor(std)[:, None, None]

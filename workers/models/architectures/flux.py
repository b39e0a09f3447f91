"""FLUX.1: packed latents with position ids, a pooled prompt by CLIP, tokens by T5, and embedded guidance or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workers.models.architectures.architecture import Configs, Text
from workers.models.architectures.diffusion_transformer import (
    PATCH,
    DiffusionTransformer,
    Width,
    tokens_beyond,
    words,
)

if TYPE_CHECKING:
    import torch

    from weir.prompts import Prompt
    from workers.engine.scheduling import Recipe

#: Number of tokens of a prompt: of FLUX.1-dev, and of FLUX.1-schnell, which embeds no guidance.
_TOKENS, _TOKENS_WITHOUT_GUIDANCE = 512, 256


class Flux(DiffusionTransformer):
    """FLUX.1-schnell and FLUX.1-dev."""

    pipeline_class = "FluxPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    has_negative_prompts = False

    @classmethod
    def widths(cls, configs: Configs) -> Iterator[Width]:
        channels = configs["vae"].get("latent_channels", 4)
        for key in ("in_channels", "out_channels"):
            yield Width(key, PATCH**2 * channels, f"a patch of the VAE's latents with {channels} channels")
        yield Width("patch_size", 1, "a sequence of packed latents")
        yield Width("pooled_projection_dim", configs["text_encoder"].get("hidden_size"), "text_encoder")
        yield Width("joint_attention_dim", configs["text_encoder_2"].get("d_model"), "text_encoder_2")

    @property
    def text_key(self) -> object:
        return super().text_key, self._tokens

    @property
    def _embeds_guidance(self) -> bool:
        return bool(self.pipeline.transformer.config.guidance_embeds)

    @property
    def _tokens(self) -> int:
        return _TOKENS if self._embeds_guidance else _TOKENS_WITHOUT_GUIDANCE

    def guidance_factor(self, guidance: float) -> float | None:
        return None

    def encode(self, prompts: Sequence[Prompt]) -> list[Text]:
        texts = [words(prompt) for prompt in prompts]
        states, pooled, _ = self.pipeline.encode_prompt(
            texts, None, device=self.device, max_sequence_length=self._tokens
        )
        return [
            Text(  # of its own memory, because an encoding is kept longer than its batch
                {"encoder_hidden_states": own.clone(), "pooled_projections": summary.clone()},
                tokens_beyond(self.pipeline.tokenizer_2, text, self._tokens),
            )
            for text, own, summary in zip(texts, states, pooled, strict=True)
        ]

    def conditions(self, text: Text, recipe: Recipe) -> dict[str, torch.Tensor]:
        import torch  # not at the top: an adapter is imported to check configurations

        conditions = super().conditions(text, recipe)
        if self._embeds_guidance:
            conditions["guidance"] = torch.tensor(recipe.guidance, device=self.device)
        return conditions

    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch.nn.functional as F  # not at the top: an adapter is imported to check configurations

        patches = F.pixel_unshuffle(latents, PATCH)
        states = conditions["encoder_hidden_states"]
        text, image = _positions(states.shape[1], *patches.shape[2:], latents.device, latents.dtype)
        output = denoiser(
            patches.flatten(2).transpose(1, 2),
            timestep=timesteps.to(latents.dtype) / 1000,
            txt_ids=text,
            img_ids=image,
            return_dict=False,
            **conditions,
        )[0]
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, tuple(patches.shape[2:])), PATCH)


@lru_cache(64)
def _positions(
    tokens: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The position ids of tokens [T, 3], all zeros, and of patches [h · w, 3]: 0, row and column."""
    import torch  # not at the top: an adapter is imported to check configurations

    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    return torch.zeros((tokens, 3), device=device, dtype=dtype), image.to(device, dtype)

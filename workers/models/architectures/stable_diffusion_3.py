"""Stable Diffusion 3 and 3.5: two CLIPs and T5, classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

#: Number of tokens of a prompt that T5 encodes; the CLIPs encode the first 77, as diffusers' pipeline does it.
_TOKENS = 256


class StableDiffusion3(DiffusionTransformer):
    """Stable Diffusion 3 and 3.5."""

    pipeline_class = "StableDiffusion3Pipeline"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    linear_levels = False

    @classmethod
    def widths(cls, configs: Configs) -> Iterator[Width]:
        channels = configs["vae"].get("latent_channels", 4)
        for key in ("in_channels", "out_channels"):
            yield Width(key, channels, "the VAE")
        yield Width("patch_size", PATCH, "the sizes of images")
        pooled = sum(configs[part].get("projection_dim", 0) for part in cls.text_encoders[:2])
        yield Width("pooled_projection_dim", pooled or None, "text_encoder and text_encoder_2")
        yield Width("joint_attention_dim", configs["text_encoder_3"].get("d_model"), "text_encoder_3")

    @classmethod
    def most_side(cls, configs: Configs) -> int | None:
        patches = configs["transformer"].get("pos_embed_max_size")
        return None if patches is None else patches * cls.factor(configs)

    def guidance_factor(self, guidance: float) -> float | None:
        return guidance if guidance > 1 else None

    def encode(self, prompts: Sequence[Prompt]) -> list[Text]:
        texts = [words(prompt) for prompt in prompts]
        states, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=_TOKENS,
        )
        return [
            Text(  # of its own memory, because an encoding is kept longer than its batch
                {"encoder_hidden_states": own.clone(), "pooled_projections": summary.clone()},
                tokens_beyond(self.pipeline.tokenizer_3, text, _TOKENS),
            )
            for text, own, summary in zip(texts, states, pooled, strict=True)
        ]

    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        return denoiser(latents, timestep=timesteps, return_dict=False, **conditions)[0]

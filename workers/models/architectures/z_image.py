"""Z-Image: one language model as text encoder, prompts of any length, and guidance that counts from zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workers.models.architectures.architecture import Configs, Mismatch, Text
from workers.models.architectures.diffusion_transformer import PATCH, DiffusionTransformer, Width, tokens_beyond, words

if TYPE_CHECKING:
    import torch

    from weir.prompts import Prompt
    from weir.samplers import Scheduler

#: Number of tokens of a prompt, with those of the chat template around it.
_TOKENS = 512


class ZImage(DiffusionTransformer):
    """Z-Image-Turbo and Z-Image."""

    pipeline_class = "ZImagePipeline"
    text_encoders = ("text_encoder",)
    takes_adapters = False  # its embedders take the patches and tokens of all rows in one sequence

    @classmethod
    def mismatches(cls, configs: Configs, samplers: Sequence[Scheduler]) -> Iterator[Mismatch]:
        yield from super().mismatches(configs, samplers)
        if (given := configs["transformer"].get("siglip_feat_dim")) is not None:
            what = f"siglip_feat_dim is {given}, of a model that takes pictures beside the prompt"
            yield Mismatch("transformer", what, "use the transformer of Z-Image or Z-Image-Turbo")

    @classmethod
    def widths(cls, configs: Configs) -> Iterator[Width]:
        yield Width("in_channels", configs["vae"].get("latent_channels", 4), "the VAE")
        yield Width("cap_feat_dim", configs["text_encoder"].get("hidden_size"), "text_encoder")

    @classmethod
    def most_side(cls, configs: Configs) -> int | None:
        lengths = configs["transformer"].get("axes_lens")
        return None if lengths is None else min(lengths[1:]) * cls.factor(configs)

    def guidance_factor(self, guidance: float) -> float | None:
        return 1 + guidance if guidance > 0 else None  # prompt + g · (prompt − negative)

    def encode(self, prompts: Sequence[Prompt]) -> list[Text]:
        texts = [words(prompt) for prompt in prompts]
        states, _ = self.pipeline.encode_prompt(
            [*texts], device=self.device, do_classifier_free_guidance=False, max_sequence_length=_TOKENS
        )
        return [
            Text({"cap_feats": own}, tokens_beyond(self.pipeline.tokenizer, self._asked(text), _TOKENS))
            for text, own in zip(texts, states, strict=True)
        ]

    def stack(self, conditions: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
        # The transformer pads prompts of different lengths itself, and masks what it padded.
        return {"cap_feats": [row["cap_feats"] for row in conditions]}

    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch  # not at the top: an adapter is imported to check configurations

        frames = list(latents.unsqueeze(2).unbind())
        output = denoiser(frames, (1000 - timesteps) / 1000, patch_size=PATCH, return_dict=False, **conditions)[0]
        return -torch.stack(output).squeeze(2)  # it predicts the velocity from noise to image

    def _asked(self, text: str) -> str:
        """A prompt in the chat template, as the pipeline encodes it."""
        messages = [{"role": "user", "content": text}]
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return self.pipeline.tokenizer.apply_chat_template(messages, **how)

"""Stable Diffusion 1 and 2, and models of their architecture: a UNet that attends to one text encoder's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from workers.engine.scheduler_settings import unsupported
from workers.models.architectures.architecture import Architecture, Configs, Mismatch, Pipeline, Text

if TYPE_CHECKING:
    import torch

    from weir.samplers import Scheduler
    from workers.engine.scheduling import Recipe

_TEXT_TO_IMAGE = "use the UNet of a text-to-image model of this architecture"
#: Settings of UNets with conditions that these pipelines do not compute.
_UNCONDITIONED = {"class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None}


class StableDiffusion(Architecture):
    """Stable Diffusion 1 and 2."""

    pipeline_class = "StableDiffusionPipeline"
    denoiser_part = "unet"
    loading: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    #: Of each text encoder.
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    #: The UNet's setting for what it is conditioned on besides the prompt's tokens and the timestep.
    addition_embed_type: ClassVar[str | None] = None

    # ----------------------------------------------------------------------------------------- checkpoints

    @classmethod
    def mismatches(cls, configs: Configs, samplers: Sequence[Scheduler]) -> Iterator[Mismatch]:
        for name in samplers:
            for what, remedy in unsupported(name, configs["scheduler"]):
                yield Mismatch("scheduler", what, remedy)
        unet, channels = configs["unet"], configs["vae"].get("latent_channels", 4)
        for key in ("in_channels", "out_channels"):
            if (given := unet.get(key, 4)) != channels:
                kind = " (9 channels: inpainting, 8: editing)" if key == "in_channels" else ""
                yield Mismatch("unet", f"{key} is {given}, and the VAE's latents have {channels}{kind}", _TEXT_TO_IMAGE)
        width = sum(configs[encoder].get("hidden_size", 0) for encoder in cls.text_encoders)
        given = unet.get("cross_attention_dim", 1280)
        if {*(given if isinstance(given, list | tuple) else [given])} != {width}:
            encoders = " and ".join(cls.text_encoders)
            yield Mismatch("unet", f"cross_attention_dim is {given}, and {encoders} give {width}", _TEXT_TO_IMAGE)
        for key, needed in {"addition_embed_type": cls.addition_embed_type, **_UNCONDITIONED}.items():
            if (given := unet.get(key)) != needed:
                yield Mismatch("unet", f"{key} is {given}; {cls.pipeline_class} needs {needed}", _TEXT_TO_IMAGE)

    @classmethod
    def factor(cls, configs: Configs) -> int:
        return 2 ** (len(configs["vae"].get("block_out_channels", [0])) - 1)

    @classmethod
    def assemble(cls, base: Pipeline, **parts: Any) -> Pipeline:
        return type(base)(**{**base.components, **parts}, requires_safety_checker=False)

    # ---------------------------------------------------------------------------------------------- models

    @property
    def text_key(self) -> object:
        return id(self.pipeline.text_encoder)

    @property
    def embeds_guidance(self) -> bool:
        return self.pipeline.unet.config.time_cond_proj_dim is not None

    @property
    def zeros_for_no_negative(self) -> bool:
        return False

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        tokens, *_ = self._encode(prompts)
        return [
            Text({"encoder_hidden_states": states}, self._unused_tokens(prompt))
            for prompt, states in zip(prompts, tokens, strict=True)
        ]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.unet.config.in_channels, height // factor, width // factor

    def conditions(self, text: Text, recipe: Recipe) -> dict[str, torch.Tensor]:
        conditions = dict(text.tensors)
        if self.embeds_guidance:
            conditions["timestep_cond"] = self._guidance_embedding(recipe.guidance)
        return conditions

    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        return denoiser(latents, timesteps, return_dict=False, **conditions)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor)

    def _encode(self, prompts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """What the pipeline's ``encode_prompt`` returns without guidance; the token states [B, T, D] come first."""
        return self.pipeline.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )

    def _unused_tokens(self, prompt: str) -> int:
        """Number of tokens beyond the length of a text encoder; the pipeline leaves them out."""
        tokenizers = [getattr(self.pipeline, name) for name in self.tokenizers]
        return max(0, *(len(it(prompt).input_ids) - it.model_max_length for it in tokenizers))

    def _guidance_embedding(self, guidance: float) -> torch.Tensor:
        """The condition of a UNet that was distilled with guidance (Meng et al. 2023), [D]."""
        import torch  # not at the top: an adapter is imported to check configurations

        unet = self.pipeline.unet
        width = unet.config.time_cond_proj_dim
        embedded = self.pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
        return embedded[0].to(self.device, unet.dtype)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents, return_dict=False)[0].float()

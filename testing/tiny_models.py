"""Tiny diffusers models with random weights and the structure of the supported families."""

from __future__ import annotations

from typing import Any

import torch

WIDTH = 32
TOKENS = 32
SIZE = 32  # pixels; two levels of the decoder make it 16 × 16 latents

torch.set_num_threads(1)


def tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        model_max_length=TOKENS,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


def text_encoder(kind: Any, words: Any) -> Any:
    from transformers import CLIPTextConfig

    return kind(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    ).eval()


def unet(seed: int, *, sdxl: bool = True, channels: int = 16, in_channels: int = 4) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    extra: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        "cross_attention_dim": 2 * WIDTH,
    }
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(channels, 2 * channels),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        **(extra if sdxl else {"cross_attention_dim": WIDTH}),
    ).eval()


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    ).eval()


def sdxl_pipeline(seed: int = 0) -> Any:
    """Builds a tiny pipeline with the structure of stabilityai/stable-diffusion-xl-base-1.0."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    words = tokenizer()
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(CLIPTextModel, words),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, words),
        tokenizer=words,
        tokenizer_2=tokenizer(),
        unet=unet(seed),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        add_watermarker=False,
    )


def sd_pipeline(seed: int = 0) -> Any:
    """Builds a tiny pipeline with the structure of stable-diffusion-v1-5 and stabilityai/sd-turbo."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    words = tokenizer()
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(CLIPTextModel, words),
        tokenizer=words,
        unet=unet(seed, sdxl=False),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def inpainting_pipeline(base: Any, seed: int = 5) -> Any:
    """Builds a tiny inpainting pipeline with a UNet of 9 channels and the other parts of a pipeline."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

    sdxl = hasattr(base, "text_encoder_2")
    parts = {**base.components, "unet": unet(seed, sdxl=sdxl, in_channels=9)}
    if sdxl:
        return StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def clip(words: Any) -> Any:
    """Builds a tiny CLIP model with the structure of the embedded family's, from which its discriminator gets text
    embeddings."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionConfig

    text = text_encoder(CLIPTextModelWithProjection, words).config
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    both = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    return CLIPModel(both).eval()

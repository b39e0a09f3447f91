"""The published shapes of FLUX.1, Stable Diffusion 3.5 and Z-Image with random weights, without a download.

The settings are those of the configurations in the repositories that ``deploy/families/`` names. Text encoders can be
left small: they are 5 to 10 GB, and only their widths matter to the denoisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from testing.tiny_models import tokenizer
from testing.tiny_transformers import flow_scheduler, qwen_tokenizer, t5_tokenizer
from workers.models.architectures.architecture import Pipeline

Settings = Mapping[str, Any]

CLIP_L: Settings = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_G: Settings = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: Settings = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
QWEN3_4B: Settings = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
FLUX_VAE: Settings = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SD3_VAE: Settings = {"scaling_factor": 1.5305, "shift_factor": 0.0609}


@dataclass(frozen=True)
class Published:
    """The settings of a published model.

    Attributes:
        pipeline: name of diffusers' pipeline class.
        transformer: name and settings of the denoiser's class.
        billions: parameters of the denoiser, in billions.
    """

    pipeline: str
    transformer: tuple[str, Settings]
    scheduler: Settings
    vae: Settings
    billions: float
    clips: tuple[Settings, ...] = field(default=())


_FLUX: Settings = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
_SD3_5: Settings = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
_Z_IMAGE: Settings = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
_DYNAMIC: Settings = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}

_SD3_5_LARGE = Published(
    "StableDiffusion3Pipeline", ("SD3Transformer2DModel", _SD3_5), {"shift": 3.0}, SD3_VAE, 8.1, (CLIP_L, CLIP_G)
)

#: By the names of the variants in ``deploy/families/``.
PUBLISHED: dict[str, Published] = {
    "flux.1-dev": Published(
        "FluxPipeline",
        ("FluxTransformer2DModel", {**_FLUX, "guidance_embeds": True}),
        _DYNAMIC,
        FLUX_VAE,
        11.9,
        (CLIP_L,),
    ),
    "flux.1-schnell": Published(
        "FluxPipeline",
        ("FluxTransformer2DModel", {**_FLUX, "guidance_embeds": False}),
        {"shift": 1.0},
        FLUX_VAE,
        11.9,
        (CLIP_L,),
    ),
    "stable-diffusion-3.5-large": _SD3_5_LARGE,
    "stable-diffusion-3.5-large-turbo": _SD3_5_LARGE,
    "z-image-turbo": Published("ZImagePipeline", ("ZImageTransformer2DModel", _Z_IMAGE), {"shift": 3.0}, FLUX_VAE, 6.2),
    "z-image": Published("ZImagePipeline", ("ZImageTransformer2DModel", _Z_IMAGE), {"shift": 6.0}, FLUX_VAE, 6.2),
}


def pipeline(name: str, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> Pipeline:
    """Builds a published model on ``device``.

    Args:
        name: key of :data:`PUBLISHED`.
        device: ``meta`` has shapes and no values, so that it takes no memory.
    """
    import diffusers
    import transformers as hub

    it = PUBLISHED[name]
    kind, settings = it.transformer
    with torch.device(device):
        parts: dict[str, Any] = {
            "transformer": getattr(diffusers, kind)(**settings),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=16,
                sample_size=1024,
                use_quant_conv=False,
                use_post_quant_conv=False,
                **it.vae,
            ),
        }
        if it.pipeline == "ZImagePipeline":
            parts |= {"text_encoder": hub.Qwen3Model(hub.Qwen3Config(**QWEN3_4B)), "tokenizer": qwen_tokenizer()}
        else:
            clip = hub.CLIPTextModel if it.pipeline == "FluxPipeline" else hub.CLIPTextModelWithProjection
            names = [f"_{number}" if number > 1 else "" for number in range(1, len(it.clips) + 2)]
            for suffix, shape in zip(names[:-1], it.clips, strict=True):
                parts |= {f"text_encoder{suffix}": clip(hub.CLIPTextConfig(**shape)), f"tokenizer{suffix}": tokenizer()}
            parts |= {
                f"text_encoder{names[-1]}": hub.T5EncoderModel(hub.T5Config(**T5_XXL)),
                f"tokenizer{names[-1]}": t5_tokenizer(),
            }
    whole = getattr(diffusers, it.pipeline)(scheduler=flow_scheduler(**it.scheduler), **parts)
    for part in ("transformer", "vae"):
        parts[part].eval().to(dtype)
    return whole

"""SDXL base 1.0's architecture with random weights: the published shapes without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from weir.assets import WEIGHTS
from workers.models.architectures.architecture import Pipeline

_TOKENS = 77
#: The tokenizers' tokens; the last one ends a prompt.
_BYTES = [
    *(byte + end for end in ("", "</w>") for byte in sorted(ByteLevel.alphabet())),
    "<|startoftext|>",
    "<|endoftext|>",
]
_DISCRIMINATOR = WEIGHTS / "discriminator"
#: Arguments of :func:`pipeline` for a small model, to try the code within seconds on one core.
SMALL: dict[str, Any] = {
    "channels": (32, 64, 64),
    "depth": (1, 1, 1),
    "text_layers": (1, 1),
    "vae_channels": (32, 32, 32, 32),
}


def write_family(folder: Path, device: str, size: int, **shape: Any) -> Path:
    """Saves the pipeline and a family file, whose light variant has separate weights of the same shape.

    Steps and schedulers are those of ``deploy/families/sdxl-lightning.yaml``. The judge is the discriminator of the
    embedded family: its confidences in random images are meaningless, but they differ, so that a threshold divides
        them.

    Args:
        size: side of the images, pixels.
        shape: arguments of :func:`pipeline`.

    Returns:
        The family file, ``folder/family.yaml``.
    """
    whole = pipeline(device, **shape)
    whole.save_pretrained(folder / "pipeline")
    file = folder / "family.yaml"
    light = {"name": "sdxl-lightning-4step", "unet": "pipeline/unet", "scheduler": "euler-trailing", "steps": 4}
    family = {
        "name": "sdxl-random",
        "pipeline": "pipeline",
        "size": size,
        "dtype": "bfloat16",
        "device": device,
        "light": light | {"guidance": 0},
        "heavy": {"name": "sdxl-base-1.0", "scheduler": "euler", "steps": 50, "guidance": 5.0},
        "discriminator": str(_DISCRIMINATOR),
    }
    file.write_text(yaml.safe_dump(family, sort_keys=False))
    return file


def write_text_encoder(folder: Path, second: bool = False) -> None:
    """Saves a text encoder of SDXL's shapes in float32, with a tokenizer whose tokens are single letters.

    Args:
        second: OpenCLIP ViT-bigG instead of CLIP ViT-L. With its projection the latter is also the text model of
            ``openai/clip-vit-large-patch14``, the encoder of the caches of SDXL's families.
    """
    torch.manual_seed(0)
    shape = _text(1280, 32, 20, 1280, "gelu") if second else _text(768, 12, 12, 768, "quick_gelu")
    CLIPTextModelWithProjection(shape).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def pipeline(
    device: str,
    *,
    channels: Sequence[int] = (320, 640, 1280),
    depth: Sequence[int] = (1, 2, 10),
    text_layers: tuple[int, int] = (12, 32),
    vae_channels: Sequence[int] = (128, 256, 512, 512),
    dtype: torch.dtype = torch.bfloat16,
) -> Pipeline:
    """Builds the pipeline on ``device``, in bfloat16 because random weights may leave the range of float16. The UNet
    has 2.6 billion parameters by default.

    The other arguments set the shape of a smaller model, to try a benchmark itself.
    """
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=tuple(depth),
            attention_head_dim=tuple(c // 64 for c in channels),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = AutoencoderKL(
            block_out_channels=tuple(vae_channels),
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            layers_per_block=2,
            sample_size=1024,
            scaling_factor=0.13025,
        )
        first = CLIPTextModel(_text(768, text_layers[0], 12, 768, "quick_gelu"))
        second = CLIPTextModelWithProjection(_text(1280, text_layers[1], 20, 1280, "gelu"))
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading", steps_offset=1
    )
    whole = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=first.eval(),
        text_encoder_2=second.eval(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        add_watermarker=False,
    )
    return whole.to(device, dtype)


def _text(width: int, layers: int, heads: int, projection: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
        hidden_act=activation,
        eos_token_id=len(_BYTES) - 1,  # whose state becomes the pooled prompt
    )


def _tokenizer() -> CLIPTokenizer:
    """Builds a tokenizer with one token per byte: only the number of tokens matters for speed."""
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(_BYTES)}, merges=[], model_max_length=_TOKENS)

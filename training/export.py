"""Writes the trained parts in the layout of diffusers and transformers, which the workers load: fp16 safetensors."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from training.clip import Encoders
from training.denoiser import new_scheduler

PIPELINE, LIGHT_UNET, CLIP, CHECKER, DISCRIMINATOR = "pipeline", "light_unet", "clip", "checker", "discriminator"


def _half(module: Any) -> Any:
    """A copy in fp16 with contiguous weights, because training may have made them channels-last."""
    copy = deepcopy(module).to("cpu", torch.float16, memory_format=torch.contiguous_format)
    return copy.eval()


def export_encoders(out: Path, encoders: Encoders, tokenizer: CLIPTokenizer) -> None:
    """Writes ``clip/``: the CLIP for similarity, the CLIP score and the discriminator, with its tokenizer."""
    folder = out / CLIP
    _half(encoders.clip()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def export_pipeline(
    out: Path,
    encoders: Encoders,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    heavy: UNet2DConditionModel,
    light: UNet2DConditionModel,
) -> None:
    """Writes ``pipeline/`` (a whole SDXL pipeline with the heavy UNet) and ``light_unet/`` beside it."""
    pipeline = StableDiffusionXLPipeline(
        vae=_half(vae),
        text_encoder=_half(encoders.first),
        text_encoder_2=_half(encoders.second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_half(heavy),
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(out / PIPELINE)
    _half(light).save_pretrained(out / LIGHT_UNET)


def load_encoders(folder: Path) -> Encoders:
    """The encoders of an exported family, in fp32; their training heads have new weights.

    Raises:
        OSError: the folder has no encoders.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder / CLIP)
    clip = CLIPModel.from_pretrained(folder / CLIP, dtype=torch.float32, use_safetensors=True)
    first = CLIPTextModel.from_pretrained(folder / PIPELINE / "text_encoder", dtype=torch.float32, use_safetensors=True)
    encoders = Encoders(tokenizer)
    encoders.first.load_state_dict(first.state_dict())
    encoders.second.text_model.load_state_dict(clip.text_model.state_dict())
    encoders.second.text_projection.load_state_dict(clip.text_projection.state_dict())
    encoders.vision.vision_model.load_state_dict(clip.vision_model.state_dict())
    encoders.vision.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    encoders.logit_scale.data.copy_(clip.logit_scale.detach())
    return encoders

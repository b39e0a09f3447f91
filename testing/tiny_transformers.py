"""Tiny pipelines of diffusion transformers with random weights and the structure of the supported families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from testing.tiny_models import SIZE, WIDTH, text_encoder, tokenizer

CHANNELS = 16
#: Number of pixels of which sizes are multiples: two levels of the VAE's decoder, and patches of two positions.
FACTOR = 4
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shifted_vae() -> Any:
    """A VAE whose latents have a scale and a shift."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.36,
        shift_factor=0.11,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def t5_tokenizer() -> Any:
    """A tokenizer of T5's class with one token for each letter."""
    from transformers import T5Tokenizer

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((it, -3.0) for it in letters)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def t5_encoder(words: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=WIDTH,
            d_kv=8,
            d_ff=WIDTH,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def qwen_tokenizer() -> Any:
    """A tokenizer of Qwen's class with one token for each byte, and a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *marks])}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        model_max_length=1024,
        additional_special_tokens=marks[1:],
        chat_template=_CHAT,
    )


def qwen_encoder(words: Any) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    ).eval()


def flow_scheduler(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def flux_pipeline(seed: int = 0, *, guidance: bool = True, heads: int = 2, layers: int = 1) -> Any:
    """Builds a tiny pipeline with the structure of black-forest-labs/FLUX.1-dev.

    Args:
        guidance: False: the structure of FLUX.1-schnell.
        heads: of 16 channels each.
        layers: of either kind.
    """
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    clip_words, words = tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0, "base_image_seq_len": 16, "max_image_seq_len": 256}
    return FluxPipeline(
        scheduler=flow_scheduler(**(dynamic if guidance else {"shift": 1.0})),
        vae=shifted_vae(),
        text_encoder=text_encoder(CLIPTextModel, clip_words),
        tokenizer=clip_words,
        text_encoder_2=t5_encoder(words),
        tokenizer_2=words,
        transformer=transformer,
    )


def schnell_pipeline(seed: int = 0) -> Any:
    """Builds a tiny pipeline with the structure of black-forest-labs/FLUX.1-schnell."""
    return flux_pipeline(seed, guidance=False)


def flux_family(folder: Path, **more: Any) -> Path:
    """Saves FLUX.1-schnell and FLUX.1-dev in miniature, and the family file of the pair.

    Args:
        more: further fields of the family file.
    """
    flux_pipeline().save_pretrained(folder / "dev")
    schnell_pipeline(1).save_pretrained(folder / "schnell")
    light = {"name": "schnell", "pipeline": "schnell", "shares_encoders": True, "steps": 2, "guidance": 0}
    heavy = {"name": "dev", "steps": 10, "guidance": 3.5}
    family = {
        "name": "flux",
        "pipeline": "dev",
        "size": SIZE,
        "device": "cpu",
        "eight_bit_encoders": ["text_encoder_2"],
        "light": light | {"scheduler": "flow-euler"},
        "heavy": heavy | {"scheduler": "flow-euler"},
    }
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump(family | more, sort_keys=False))
    return path


def sd3_pipeline(seed: int = 0, *, dual: bool = True, heads: int = 2, layers: int = 2) -> Any:
    """Builds a tiny pipeline with the structure of stabilityai/stable-diffusion-3.5-large.

    Args:
        dual: whether a block attends to the image twice, as in stable-diffusion-3.5-medium.
    """
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(seed)
    words, t5_words = tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16 * heads,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
        dual_attention_layers=(0,) if dual else (),
        qk_norm="rms_norm",
    ).eval()
    t5 = t5_encoder(t5_words)
    t5 = type(t5)(type(t5.config)(**{**t5.config.to_dict(), "d_model": 2 * WIDTH})).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(shift=3.0),
        vae=shifted_vae(),
        text_encoder=text_encoder(CLIPTextModelWithProjection, words),
        tokenizer=words,
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, words),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=t5_words,
    )


def z_image_pipeline(seed: int = 0, *, heads: int = 2, layers: int = 2) -> Any:
    """Builds a tiny pipeline with the structure of Tongyi-MAI/Z-Image-Turbo."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(seed)
    words = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=16 * heads,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64],
    ).eval()
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # zeros would hide a wrong padding
        torch.nn.init.normal_(token)
    return ZImagePipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=shifted_vae(),
        text_encoder=qwen_encoder(words),
        tokenizer=words,
        transformer=transformer,
    )

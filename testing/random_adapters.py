"""LoRA adapters with random weights, in the formats of kohya, diffusers and PEFT."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

#: Layers that adapters of kohya and diffusers change: attention, feed-forward, projections, convolutions, embeddings.
_UNET = re.compile(r"to_(q|k|v|out\.0)$|ff\.net\.(0\.proj|2)$|proj_(in|out)$|conv1$|time_emb_proj$")
#: Of transformers also the additional projections and the modulation.
_TRANSFORMER = re.compile(r"to_(q|k|v|out\.0|add_out)$|add_(q|k|v)_proj$|ff\.net\.(0\.proj|2)$|proj_mlp$|norm\.linear$")
_ATTENTION = re.compile(r"to_(q|k|v|out\.0)$")
_TEXT = re.compile(r"(q|k|v|out)_proj$|fc[12]$")

Tensors = dict[str, torch.Tensor]


def random_adapter(pipeline: Any, seed: int, *, rank: int = 4, strength: float = 0.3, text: bool = True) -> Tensors:
    """The tensors of an adapter with PEFT's names, as diffusers writes them.

    Args:
        strength: standard deviation of the tensors ``lora_B``.
        text: whether it changes the text encoders, too.
    """
    random = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    parts = {"unet": _UNET, "transformer": _TRANSFORMER} | (
        {"text_encoder": _TEXT, "text_encoder_2": _TEXT} if text else {}
    )
    for part, layers in parts.items():
        module = getattr(pipeline, part, None)
        for name, layer in [] if module is None else module.named_modules():
            if layers.search(name) is None or not hasattr(layer, "weight"):
                continue
            outputs, inputs, *kernel = layer.weight.shape
            down = torch.randn((rank, inputs, *kernel), generator=random) / inputs**0.5
            up = torch.randn((outputs, rank, *[1] * len(kernel)), generator=random) * strength
            tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    return tensors


def attention_only(tensors: Tensors) -> Tensors:
    """The tensors of the UNet's attention, which diffusers' older format has names for."""
    return {k: v for k, v in tensors.items() if k.startswith("unet.") and _ATTENTION.search(k.partition(".lora_")[0])}


def write_peft(tensors: Tensors, path: Path) -> Path:
    """Writes the format of diffusers and PEFT: ``unet.….lora_A.weight``."""
    save_file(tensors, path)
    return path


def write_old_diffusers(tensors: Tensors, path: Path) -> Path:
    """Writes diffusers' older format: ``unet.….attn1.processor.to_q_lora.down.weight``."""

    def renamed(name: str) -> str:
        name = name.replace("lora_A", "lora.down").replace("lora_B", "lora.up").replace("to_out.0", "to_out")
        return re.sub(r"(attn\d)\.(to_\w+)\.lora", r"\1.processor.\2_lora", name)

    save_file({renamed(name): tensor for name, tensor in tensors.items()}, path)
    return path


def write_kohya(tensors: Tensors, path: Path, alpha: float) -> Path:
    """Writes kohya's format: ``lora_unet_…_to_q.lora_down.weight`` with an ``alpha`` of each layer."""
    parts = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    if not any(name.startswith("text_encoder_2.") for name in tensors):
        parts["text_encoder"] = "lora_te"
    written: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, side = name.partition(".lora_")
        part, _, layer = layer.partition(".")
        prefix = f"{parts[part]}_" + ("text_model_" if part == "text_encoder" and "text_model" not in layer else "")
        layer = prefix + layer.replace(".", "_")
        written[f"{layer}.lora_{'down' if side[0] == 'A' else 'up'}.weight"] = tensor
        written[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(written, path)
    return path


def flux_kohya_adapter(rank: int = 4, *, width: int, seed: int = 1) -> Tensors:
    """The tensors of an adapter for FLUX.1 in kohya's names: the first double block, whose layers ``qkv`` are one, and
    CLIP's first layer.

    Args:
        width: of the transformer and of CLIP.
    """
    random, tensors = torch.Generator().manual_seed(seed), {}
    block = "lora_unet_double_blocks_0_"
    layers = {f"{block}img_attn_qkv": 3, f"{block}txt_attn_qkv": 3, f"{block}img_attn_proj": 1, f"{block}img_mlp_0": 4}
    layers |= {f"lora_te1_text_model_encoder_layers_0_self_attn_{it}_proj": 1 for it in ("q", "k", "v", "out")}
    for name, times in layers.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn((rank, width), generator=random) / width**0.5
        tensors[f"{name}.lora_up.weight"] = torch.randn((times * width, rank), generator=random) * 0.3
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    return tensors


def write_peft_folder(tensors: Tensors, folder: Path, alpha: float) -> Path:
    """Writes PEFT's own folder for the UNet: ``base_model.model.….lora_A.weight`` beside ``adapter_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name.removeprefix("unet."): it for name, it in tensors.items() if name.startswith("unet.")}
    save_file({f"base_model.model.{name}": it for name, it in own.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": len(next(iter(own.values()))), "lora_alpha": alpha}))
    return folder / "adapter_model.safetensors"


def scaled(tensors: Tensors, factor: float) -> Tensors:
    """The tensors of an adapter with scaled updates."""
    return {name: it * factor if "lora_B" in name else it for name, it in tensors.items()}

"""Writes the weights of a pipeline under the names of the original repositories, as in the files that people share."""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

Tensors = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(pipeline: Any) -> Tensors:
    """The tensors of a Stable Diffusion or SDXL pipeline as one file."""
    prefixes = {"text_encoder": "cond_stage_model.transformer."}
    tensors = _prefixed("model.diffusion_model.", _unet(pipeline.unet))
    tensors |= _prefixed("first_stage_model.", _vae(pipeline.vae))
    if hasattr(pipeline, "text_encoder_2"):
        prefixes = {"text_encoder": "conditioner.embedders.0.transformer."}
        tensors |= _prefixed("conditioner.embedders.1.model.", _open_clip(pipeline.text_encoder_2))
    for part, prefix in prefixes.items():
        tensors |= _prefixed(prefix, _clip(getattr(pipeline, part)))
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _unet(unet: Any) -> Tensors:
    maps = DIFFUSERS_TO_LDM_MAPPING["unet"]
    names, layers = {**maps["layers"], **maps["addition_embed_type"]}, unet.config.layers_per_block
    attends = [kind.startswith("CrossAttn") for kind in unet.config.up_block_types]

    def renamed(name: str) -> str:
        if name in names:
            return names[name]
        if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
            kind, number, rest = match.groups()
            return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{_inner(kind, rest)}"
        match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
        assert match is not None, name
        way, block, kind, number, rest = match.groups()
        first = int(block) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{1 + first + layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{1 + attends[int(block)]}.{rest}"
        place = f"input_blocks.{1 + first + int(number)}" if way == "down" else f"output_blocks.{first + int(number)}"
        return f"{place}.{0 if kind == 'resnets' else 1}.{_inner(kind, rest)}"

    return {renamed(name): tensor for name, tensor in unet.state_dict().items()}


def _inner(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    layer, _, parameter = rest.partition(".")
    return f"{_RESNET[layer]}.{parameter}"


def _vae(vae: Any) -> Tensors:
    names, blocks = DIFFUSERS_TO_LDM_MAPPING["vae"], len(vae.config.block_out_channels)

    def renamed(name: str) -> str:
        if name in names:
            return names[name]
        name = name.replace("conv_shortcut", "nin_shortcut").replace("mid_block.attentions.0", "mid.attn_1")
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda it: f"mid.block_{int(it[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda it: f"up.{blocks - 1 - int(it[1])}.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda it: f"up.{blocks - 1 - int(it[1])}.upsample", name)

    tensors: Tensors = {}
    for name, tensor in vae.state_dict().items():
        new = renamed(name)
        if ".attn_1." in new:
            for theirs, ours in _ATTENTION.items():
                new = new.replace(f".{theirs}.", f".{ours}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        tensors[new] = tensor
    return tensors


def _clip(encoder: Any) -> Tensors:
    return {f"text_model.{name.removeprefix('text_model.')}": it for name, it in encoder.state_dict().items()}


def _open_clip(encoder: Any) -> Tensors:
    maps, found, tensors = DIFFUSERS_TO_LDM_MAPPING["openclip"], encoder.state_dict(), Tensors()
    for name, tensor in found.items():
        if name in maps["layers"]:
            tensors[maps["layers"][name]] = tensor.T if name == "text_projection.weight" else tensor
        elif match := re.fullmatch(r"(.+\.self_attn)\.q_proj\.(weight|bias)", name):
            where, kind = match.groups()
            joined = torch.cat([found[f"{where}.{it}_proj.{kind}"] for it in "qkv"])
            tensors[_resblock(where, maps) + f".in_proj_{kind}"] = joined
        elif not re.search(r"\.self_attn\.[kv]_proj\.|position_ids", name):
            tensors[_resblock(name, maps)] = tensor
    return tensors


def _resblock(name: str, maps: Any) -> str:
    for theirs, ours in maps["transformer"].items():
        name = name.replace(theirs, ours)
    return f"transformer.{name}"

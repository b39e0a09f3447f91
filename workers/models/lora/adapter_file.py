"""Reads LoRA adapters in the formats of kohya, diffusers and PEFT, and checks that they fit a pipeline.

A file is converted by diffusers' own functions. So is its header alone, whose tensors have a shape and no values: what
does not fit is refused before anything is loaded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from weir.adapters import AdapterUse
from weir.errors import ConfigError
from weir.json_files import parsed_json, read_json
from workers.models.architectures.architecture import Architecture
from workers.models.lora.adapter_header import REMEDY, check_kind
from workers.models.source import Source, first_lines
from workers.models.tensor_files import Shapes, read_shapes

_KOHYA = re.compile(r"lora_(unet|te|te1|te2)_")
_WRAPPED = "base_model.model."
#: Key of an adapter's configuration in the header of a file that diffusers wrote.
_METADATA = "lora_adapter_metadata"


class LowRank(NamedTuple):
    """The update ``up @ down`` of the weight of one layer.

    Attributes:
        down: [R, in], or [R, in, h, w] of a convolution.
        up: [out, R], or [out, R, 1, 1] of a convolution; scaled by α/R.
    """

    down: torch.Tensor
    up: torch.Tensor


#: Updates by part of the pipeline, such as ``unet``, and then by layer.
Updates = dict[str, dict[str, LowRank]]


def adapter_path(source: Source, use: AdapterUse) -> Path:
    """The file of an adapter, fetched from the hub if it is not on this machine.

    Raises:
        ConfigError: there is no such file.
    """
    if source.folder is not None:
        if not os.path.isfile(source.folder):  # Path.is_file fails in a folder that it may not read
            raise source.error("there is no such file", "give the path of a .safetensors file")
        return source.folder
    try:
        return Path(hf_hub_download(source.reference, use.weights.file or "", revision=source.revision))
    except Exception as error:  # the hub's HTTP library raises many types
        raise source.error(first_lines(error), "check repository, revision and weight_name") from error


def read_updates(source: Source, file: Path, model: Architecture, *, values: bool = True) -> Updates:
    """The updates of an adapter in a file, on the CPU.

    Args:
        model: that the adapter is for.
        values: False reads the header alone: the tensors have shapes and no values.

    Raises:
        ConfigError: the file is damaged, or of no known format.
    """
    try:
        tensors, settings = _tensors(file, values, model.denoiser_part)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(source, file, error) from None
    check_kind(source, tensors)
    try:
        return _converted(tensors, settings, model)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, re.error) as error:
        raise source.error(f"its tensors cannot be read: {first_lines(error)}", REMEDY) from None


def stored_elements(source: Source, file: Path) -> int:
    """Number of values in the file of an adapter.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return sum(math.prod(shape) for shape in read_shapes(file).values())
    except (OSError, SafetensorError) as error:
        raise _damaged(source, file, error) from None


def _damaged(source: Source, file: Path, error: Exception) -> ConfigError:
    return source.error(f"{file.name} is damaged: {first_lines(error)}", "fetch or write it again")


def check_fit(source: Source, updates: Mapping[str, LowRank], part: str, shapes: Shapes) -> None:
    """Checks that the updates of one part fit its layers.

    Args:
        shapes: of the part's tensors, by name.

    Raises:
        ConfigError: names the layer and what is wrong with it.
    """
    for layer, (down, up) in updates.items():
        weight = shapes.get(f"{layer}.weight")
        if weight is None:
            raise source.error(f"it changes {layer} of the {part}, which has no such layer", REMEDY)
        if up.shape[1] != down.shape[0]:
            what = f"its tensors of {layer} have the ranks {down.shape[0]} and {up.shape[1]}"
            raise source.error(what, "fetch or write the file again")
        given = (up.shape[0], *down.shape[1:])
        if _without_kernel(given) != _without_kernel(weight):
            what = f"{layer} of the {part} has the shape {list(weight)}, and the adapter is for {list(given)}"
            raise source.error(what, REMEDY)


def _tensors(file: Path, values: bool, denoiser: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file and the settings of PEFT, of the file's header or beside it.

    Args:
        values: False: tensors of more than one value are only shapes.
        denoiser: part of the pipeline that PEFT's own folders are for.
    """
    tensors = {}
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            shape = opened.get_slice(name).get_shape()
            single = math.prod(shape) == 1
            tensors[name] = opened.get_tensor(name) if values or single else torch.empty(shape, device="meta")
        settings = parsed_json((opened.metadata() or {}).get(_METADATA, "{}"))
    beside = file.with_name("adapter_config.json")
    if not settings and beside.exists() and all(name.startswith(_WRAPPED) for name in tensors):
        settings = {f"{denoiser}.{key}": value for key, value in read_json(beside).items()}
    return tensors, settings


def _converted(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any], model: Architecture) -> Updates:
    """The updates in a file's tensors, by the names that the pipeline's layers have.

    Raises:
        ValueError: a tensor is of no known format.
    """
    denoiser = model.denoiser_part
    if all(name.startswith(_WRAPPED) for name in tensors):
        tensors = {f"{denoiser}.{name.removeprefix(_WRAPPED)}": tensor for name, tensor in tensors.items()}
    if all(_KOHYA.match(name) for name in tensors):
        tensors = _from_kohya(_with_alphas(tensors), model)
    updates: Updates = {}
    for part in (denoiser, *model.text_encoders):
        own = {name.removeprefix(f"{part}."): it for name, it in tensors.items() if name.startswith(f"{part}.")}
        if own:
            factor = _factors({k.removeprefix(f"{part}."): v for k, v in settings.items() if k.startswith(f"{part}.")})
            layers = _pairs(convert_unet_state_dict_to_peft(own) if part == denoiser else _of_text_encoder(own))
            updates[part] = {name: LowRank(down, up * factor(name, len(down))) for name, (down, up) in layers.items()}
    strays = [name for name in tensors if name.partition(".")[0] not in updates]
    if strays or not updates:
        raise ValueError(f"{min(strays)} is of no known format" if strays else "there are none")
    return updates


def _from_kohya(tensors: dict[str, torch.Tensor], model: Architecture) -> dict[str, torch.Tensor]:
    """Kohya's tensors by diffusers' names. Of a transformer, diffusers looks at values, to tell apart the updates of
    layers that kohya has as one; tensors without values stand for full ones."""
    if model.denoiser_part == "unet":
        return model.pipeline.lora_state_dict(tensors, unet_config=model.pipeline.unet.config)[0]
    return model.pipeline.lora_state_dict(
        {name: torch.ones(()).expand(it.shape) if it.is_meta else it for name, it in tensors.items()}
    )


def _of_text_encoder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))


def _with_alphas(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Kohya's tensors without their ``alpha``, by which the updates are scaled."""
    scaled = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.partition(".")
        alpha = tensors.get(f"{layer}.alpha")
        if kind == "lora_up.weight" and alpha is not None:
            tensor = tensor * (float(alpha) / tensor.shape[1])
        if kind != "alpha":
            scaled[name] = tensor
    return scaled


def _pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The tensors ``lora_A`` and ``lora_B`` of each layer.

    Raises:
        ValueError: a layer has only one of them, or others.
    """
    pairs = {}
    for name in tensors:
        layer, found, rest = name.partition(".lora_A.weight")
        other = f"{layer}.lora_B.weight"
        if found and not rest and other in tensors:
            pairs[layer] = tensors[name], tensors[other]
            if any(it.ndim not in (2, 4) for it in pairs[layer]):
                raise ValueError(f"{name} or its other half is no matrix")
    known = {f"{layer}.lora_{side}.weight" for layer in pairs for side in "AB"}
    if strays := sorted(tensors.keys() - known):
        raise ValueError(f"{strays[0]} is of no known format, or lacks its other half")
    return pairs


def _factors(settings: Mapping[str, Any]) -> Any:
    """Returns the function that gives the factor of a layer's update by PEFT's settings; 1 without settings."""

    def factor(layer: str, rank: int) -> float:
        if "lora_alpha" not in settings:
            return 1.0
        patterns = settings.get("alpha_pattern") or {}
        alpha = next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", layer)), settings["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    return factor


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without a kernel of 1 × 1, which a linear layer of the same effect lacks."""
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)

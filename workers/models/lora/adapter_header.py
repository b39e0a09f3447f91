"""Checks a LoRA adapter by the names and shapes in its file's header. Needs no torch.

This finds files that are none, and adapters for another kind of model. A replica checks every layer
(:mod:`workers.models.lora.adapter_file`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError

from workers.models.architectures.architecture import Architecture
from workers.models.source import Source, first_lines
from workers.models.tensor_files import Shapes, read_shapes

REMEDY = "give a LoRA of kohya, diffusers or PEFT for this kind of model"
#: Kinds of adapters that are no LoRA, by a part of their tensors' names.
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a Tucker decomposition",
    "oft_": "OFT",
}
_LORA = re.compile(r"lora_down|lora_A|lora\.down|_lora\.down|lora_linear_layer\.down")
#: The tensor that a cross-attention's keys are multiplied by first; its width is that of the encoded prompts.
_KEYS = re.compile(r"attn2[._](processor\.)?to_k[._](lora_down|lora_A|lora\.down|down)")


def check_header(source: Source, cross_attention: object) -> None:
    """Checks a local adapter.

    Args:
        cross_attention: width of the encoded prompts, ``cross_attention_dim`` of the denoiser's configuration; None
            without it.

    Raises:
        ConfigError: names the adapter, the tensor and the remedy.
    """
    if source.folder is None or not os.path.isfile(source.folder):
        raise source.error("there is no such file", "give the path of a .safetensors file")
    shapes = _shapes(source, source.folder)
    check_kind(source, shapes)
    for name, shape in shapes.items():
        if _KEYS.search(name) and isinstance(cross_attention, int) and shape[1:2] != (cross_attention,):
            what = (
                f"{name} has the shape {list(shape)}; the encoded prompts of this model have {cross_attention} values"
            )
            raise source.error(what, REMEDY)


def check_taken(source: Source, architecture: type[Architecture]) -> None:
    """Checks that an architecture takes adapters.

    Raises:
        ConfigError: it does not.
    """
    if not architecture.takes_adapters:
        raise source.error(f"a {architecture.pipeline_class} takes no LoRA adapters", "leave adapters out")


def check_kind(source: Source, names: Iterable[str]) -> None:
    """Checks that tensors are those of a LoRA.

    Raises:
        ConfigError: they are not; names the kind and the remedy.
    """
    names = sorted(names)
    for name in names:
        if (kind := next((it for key, it in _OTHER_KINDS.items() if key in name), None)) is not None:
            raise source.error(f"it is an adapter of the kind {kind} ({name})", REMEDY)
    if not any(map(_LORA.search, names)):
        raise source.error(f"it has no tensors of a LoRA, but {names[0] if names else 'none'}", REMEDY)


def _shapes(source: Source, file: Path) -> Shapes:
    try:
        return read_shapes(file)
    except (OSError, SafetensorError) as error:
        raise source.error(f"it is damaged: {first_lines(error)}", "fetch or write it again") from None

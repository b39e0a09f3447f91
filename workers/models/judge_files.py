"""The folder of a learned discriminator: ``config.json``, ``model.safetensors`` and ``card.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from weir.errors import ConfigError
from weir.files import make_folder, written_whole
from weir.json_files import read_json

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "card.json"


def judge_kind(folder: Path | str) -> str | None:
    """The kind of a discriminator that ``weir adopt`` trained; None for any other folder."""
    try:
        found = read_json(Path(folder) / CONFIG)
    except (OSError, ValueError):
        return None
    return found.get("kind") if isinstance(found, dict) else None


def read_judge(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of a discriminator.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    try:
        config = read_json(folder / CONFIG)
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{folder}: not a discriminator ({error}); train one with `weir adopt`") from None
    return config, weights


def write_judge(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], card: Mapping[str, Any]
) -> None:
    """Writes a discriminator with the card of its figures."""
    make_folder(folder)
    halves = {name: it.half() if it.is_floating_point() else it for name, it in weights.items()}
    with written_whole(folder / WEIGHTS) as draft:
        save_file({name: it.detach().cpu().contiguous() for name, it in halves.items()}, draft)
    for name, fields in ((CARD, card), (CONFIG, config)):
        with written_whole(folder / name) as draft:
            draft.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

"""Compares ways to run a batch of images with different LoRA adapters: processor time of one step of the UNet.

    python -m benchmarks.adapters [--full] [--rank 16] [--batch 4] [--repeats 5] [--out adapters.json]

By default the UNet is the heavy one of the embedded family; ``--full`` takes SDXL's architecture with random weights,
in float32, which needs 11 GB of memory and minutes. All adapters change all attention and feed-forward layers:

* ``none``: no adapters, the base of the ratios.
* ``one``: all images have the same adapter.
* ``mixed``: every image has another adapter, and all share one call, as Weir does it.
* ``grouped``: every image has another adapter, and a call of its own.
* ``merged``: as ``grouped``, and the weights of the next adapter are merged into the UNet before its call.
* ``PEFT, …``: the same with the layers of PEFT, if it is installed; ``mixed`` with its ``adapter_names``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import command
from testing.random_adapters import random_adapter
from testing.sdxl_architecture import pipeline
from weir.assets import FAMILY
from weir.config import load_family
from workers.models.linear import use_onednn
from workers.models.lora.adapter_file import LowRank
from workers.models.lora.adapter_store import Adapter, Scaled
from workers.models.lora.low_rank import RowUpdate, applied, row_updates

Tensors = dict[str, torch.Tensor]


def unet_of(full: bool) -> tuple[Any, int]:
    """The UNet, and the side of its latents."""
    if full:
        unet = pipeline("cpu", text_layers=(1, 1), vae_channels=(32, 32, 32, 32)).unet.float()
        return unet, 32
    from diffusers import UNet2DConditionModel

    folder = Path(load_family(FAMILY).pipeline) / "unet"
    return UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval(), 16


def inputs_of(unet: Any, batch: int, side: int) -> dict[str, Any]:
    """Random arguments of one call for a batch of images."""
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": torch.randn(batch, config.in_channels, side, side),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, 77, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": torch.randn(batch, pooled), "time_ids": torch.ones(batch, 6)},
    }


def part(inputs: dict[str, Any], i: int) -> dict[str, Any]:
    """The arguments of the call of one image."""
    return {k: part(v, i) if isinstance(v, dict) else v[i : i + 1] for k, v in inputs.items()}


def loaded(tensors: Tensors) -> Adapter:
    """An adapter with the tensors of the UNet's attention and feed-forward layers."""
    names = {k.removeprefix("unet.").partition(".lora_")[0] for k in tensors}
    updates = {n: LowRank(tensors[f"unet.{n}.lora_A.weight"], tensors[f"unet.{n}.lora_B.weight"]) for n in names}
    return Adapter("random", {"unet": updates}, 0)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Least processor time of several runs, after one that does not count. Other work hardly changes it."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


@contextmanager
def merged(unet: Any, adapter: Adapter) -> Iterator[None]:
    """Context manager in which an adapter is part of the weights."""

    def add(sign: int) -> None:
        for name, (down, up) in adapter.updates["unet"].items():
            weight = unet.get_submodule(name).weight
            weight.data.addmm_(up, down, alpha=sign)

    add(1)
    try:
        yield
    finally:
        add(-1)


def measured(unet: Any, side: int, batch: int, adapters: Sequence[Adapter], repeats: int) -> dict[str, float]:
    """Seconds of a step of a batch of images in each of Weir's ways."""
    whole = inputs_of(unet, batch, side)
    parts = [part(whole, i) for i in range(batch)]

    def assembled(rows: Sequence[Adapter]) -> dict[str, RowUpdate]:
        return row_updates(unet, "unet", [(Scaled(row, 0.7),) for row in rows])

    same, mixed = (adapters[0],) * batch, tuple(adapters)
    # Made when a batch changes, not in every step.
    updates = {rows: assembled(rows) for rows in (same, mixed, *((it,) for it in adapters))}

    def run(inputs: dict[str, Any], *rows: Adapter) -> None:
        with applied(unet, updates[rows]):
            unet(**inputs)

    def run_merged() -> None:
        for inputs, adapter in zip(parts, adapters, strict=True):
            with merged(unet, adapter):
                unet(**inputs)

    return {
        "none": seconds(lambda: unet(**whole), repeats),
        "one": seconds(lambda: run(whole, *same), repeats),
        "mixed": seconds(lambda: run(whole, *mixed), repeats),
        "grouped": seconds(lambda: [run(it, a) for it, a in zip(parts, adapters, strict=True)], repeats),
        "merged": seconds(run_merged, repeats),
        "assembling a mixed batch": seconds(lambda: assembled(mixed), repeats),
    }


def measured_peft(unet: Any, side: int, batch: int, tensors: Sequence[Tensors], repeats: int) -> dict[str, float]:
    """Seconds of a step with the layers of PEFT, which stay in the UNet."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return {}
    for i, own in enumerate(tensors):
        unet.load_lora_adapter(dict(own), prefix="unet", adapter_name=f"adapter{i}")
    layers = [it for it in unet.modules() if isinstance(it, LoraLayer)]
    whole, names = inputs_of(unet, batch, side), [f"adapter{i}" for i in range(batch)]
    parts = [part(whole, i) for i in range(batch)]

    def run_mixed() -> None:
        def named(layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return args, {**kwargs, "adapter_names": names}

        hooks = [layer.register_forward_pre_hook(named, with_kwargs=True) for layer in layers]
        unet(**whole)
        for hook in hooks:
            hook.remove()

    def run_grouped() -> None:
        for inputs, name in zip(parts, names, strict=True):
            unet.set_adapters([name], [0.7])
            unet(**inputs)

    unet.set_adapters(names[:1], [0.7])
    one = seconds(lambda: unet(**whole), repeats)
    unet.set_adapters(names, [0.7] * batch)
    return {
        "PEFT, one": one,
        "PEFT, mixed": seconds(run_mixed, repeats),
        "PEFT, grouped": seconds(run_grouped, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SDXL's architecture with random weights")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="images, and adapters")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    unet, side = unet_of(given.full)
    holder = SimpleNamespace(unet=unet)
    tensors = [
        {k: v for k, v in random_adapter(holder, i, rank=given.rank).items() if ".attn" in k or ".ff." in k}
        for i in range(given.batch)
    ]
    with torch.inference_mode():
        use_onednn(unet)
        found = measured(unet, side, given.batch, [loaded(it) for it in tensors], given.repeats)
        found |= measured_peft(unet, side, given.batch, tensors, given.repeats)
    table = Table("way", "processor seconds", "ratio to none")
    for name, value in found.items():
        table.add_row(name, f"{value:.4f}", f"{value / found['none']:.2f}")
    Console(stderr=True).print(table)
    text = json.dumps({"full": given.full, "rank": given.rank, "batch": given.batch, "seconds": found}, indent=1)
    sys.stdout.write(text + "\n")
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    command(main)

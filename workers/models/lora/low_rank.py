"""Applies adapters to the layers of a model during a call, each row of the call with its own.

The updates of all adapters of a batch are stacked along their ranks, so that a layer runs two more products for a batch
with any adapters: ``x downᵀ``, whose columns are scaled by row, and ``… upᵀ``. (S-LoRA, Sheng et al. 2023, batches the
adapters of language models so.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from workers.models.lora.adapter_file import LowRank
from workers.models.lora.adapter_store import Adapter, AdapterSet, layers_of


class RowUpdate(NamedTuple):
    """The update of a layer's weight by row of a call.

    Attributes:
        down, up: stacked along the rank; see :class:`LowRank`.
        scales: [B, R]; None: they are the same for all rows, and ``up`` has them.
    """

    down: torch.Tensor
    up: torch.Tensor
    scales: torch.Tensor | None


def row_updates(module: torch.nn.Module, part: str, rows: Sequence[AdapterSet]) -> dict[str, RowUpdate]:
    """The update of each layer of a module for a call.

    Args:
        part: of the pipeline that the module is.
        rows: the adapters of each row.
    """
    used: dict[Adapter, None] = {adapter: None for row in rows for adapter, _ in row}
    by_layer: dict[str, list[tuple[Adapter, LowRank]]] = {}
    for adapter in used:
        for name, update in layers_of(module, adapter.updates.get(part, {})).items():
            by_layer.setdefault(name, []).append((adapter, update))
    scales = _Scales(rows)
    return {name: _stacked(module.get_submodule(name), its, scales) for name, its in by_layer.items()}


class _Scales:
    """The scales of a batch's rows. Most layers have the same adapters with the same ranks, and share one tensor."""

    def __init__(self, rows: Sequence[AdapterSet]):
        self._by_row = [{adapter: scale for adapter, scale in row} for row in rows]
        self.are_same = all(it == self._by_row[0] for it in self._by_row)
        self._known: dict[tuple[tuple[Adapter, int], ...], torch.Tensor] = {}

    def of(self, adapter: Adapter) -> float:
        """The scale of an adapter in all rows, if they are the same."""
        return self._by_row[0][adapter]

    def tensor(self, its: Sequence[tuple[Adapter, LowRank]]) -> torch.Tensor:
        """The scales for the stacked updates of a layer, [B, R]."""
        key = tuple((adapter, len(update.down)) for adapter, update in its)
        if key not in self._known:
            columns = [adapter for adapter, rank in key for _ in range(rank)]
            scales = [[row.get(adapter, 0.0) for adapter in columns] for row in self._by_row]
            self._known[key] = torch.tensor(scales).to(its[0][1].up)
        return self._known[key]


@contextmanager
def applied(module: torch.nn.Module, updates: Mapping[str, RowUpdate]) -> Iterator[None]:
    """Context manager in which the calls of a module have updates. Nothing of them stays behind."""
    handles = []
    try:
        for name, update in updates.items():
            layer = module.get_submodule(name)
            handles.append(layer.register_forward_hook(_convolved(update) if _is_conv(layer) else _multiplied(update)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stacked(layer: torch.nn.Module, its: Sequence[tuple[Adapter, LowRank]], scales: _Scales) -> RowUpdate:
    down = torch.cat([_shaped(update.down, layer) for _, update in its])
    ups = [_shaped(update.up, layer) for _, update in its]
    if scales.are_same:
        ups = [up * scales.of(adapter) for (adapter, _), up in zip(its, ups, strict=True)]
        return RowUpdate(down, torch.cat(ups, 1), None)
    by_row = scales.tensor(its)
    return RowUpdate(down, torch.cat(ups, 1), by_row[:, :, None, None] if _is_conv(layer) else by_row)


def _shaped(tensor: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """A tensor in the layer's number of dimensions; it may have or lack a kernel of 1 × 1."""
    if _is_conv(layer):
        return tensor if tensor.ndim == 4 else tensor[:, :, None, None]
    return tensor.flatten(1)


def _is_conv(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Conv2d)


def _multiplied(update: RowUpdate) -> Callable[..., torch.Tensor]:
    """A forward hook for a linear layer."""
    down, up, scales = update

    def hook(layer: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        inner = F.linear(inputs[0], down)
        if scales is not None:
            inner = inner * (scales if inner.ndim == 2 else scales[:, None])
        return output + F.linear(inner, up)

    return hook


def _convolved(update: RowUpdate) -> Callable[..., torch.Tensor]:
    """A forward hook for a convolution."""
    down, up, scales = update

    def hook(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        inner = F.conv2d(inputs[0], down, None, layer.stride, layer.padding, layer.dilation)
        return output + F.conv2d(inner if scales is None else inner * scales, up)

    return hook

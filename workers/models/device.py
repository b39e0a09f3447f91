"""The device that a family runs on: selection, precision, and handling of full memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeVar

import torch

from weir.config import FamilyConfig
from weir.errors import ConfigError, GenerationFailed
from workers.engine.engine import OutOfMemory

#: Parameters of ``mallopt`` (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

T = TypeVar("T")


def device_of(config: FamilyConfig) -> torch.device:
    """The family's device; ``auto`` is the first GPU if torch finds one, otherwise the CPU.

    Raises:
        ConfigError: the family names a GPU, and torch finds none.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"family {config.name}: device: {config.device}: torch finds no CUDA; use auto or cpu")
    return torch.device(config.device)


def dtype_of(config: FamilyConfig) -> torch.dtype:
    """The precision of the family's models; ``auto`` is float16 on a GPU and float32 on the CPU.

    Raises:
        ConfigError: the device does not support it.
    """
    if config.dtype == "auto":
        return torch.float16 if device_of(config).type == "cuda" else torch.float32
    if config.dtype == "float16" and device_of(config).type == "cpu":
        raise ConfigError(f"family {config.name}: dtype: float16 does not run on the CPU; use auto or float32")
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[config.dtype]


def keep_freed_memory() -> None:
    """Makes the process keep freed memory (up to 512 MiB), because the next step allocates as much again.

    glibc returns large blocks to the system, which causes page faults at every step: 4,000 in a step of the embedded
    family with 8 images, a tenth of its time. Without glibc this does nothing.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        allocator.mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)


def within_memory(device: torch.device, work: Callable[[], T], what: str, forget: Callable[[], None]) -> T:
    """Runs ``work`` without gradients.

    Args:
        what: description of the work for the error message, e.g. "a batch of 4 at 1024 px".
        forget: releases the caller's tensors on the device; called when memory has run out.

    Raises:
        OutOfMemory: memory has run out; the memory that ``work`` used is free again.
    """
    try:
        with torch.inference_mode():
            return work()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler, because the exception's frames would keep the batch's tensors alive.
    forget()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise OutOfMemory(f"{what} does not fit {device}")


def probe(device: torch.device) -> None:
    """Runs a trivial computation on the device.

    Raises:
        GenerationFailed: the result is wrong.
        Exception: the device is lost.
    """
    value = torch.ones(8, device=device).sum().item()
    if value != 8:
        raise GenerationFailed(f"{device} computes {value} as the sum of eight ones")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

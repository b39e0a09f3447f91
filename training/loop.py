"""The training loop of all parts of the family. It counts in steps and can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from weir.files import written_whole

Trained = TypeVar("Trained", bound=nn.Module)

#: ``loss(step, generator)``: the loss of one batch, and figures for the progress bar. All randomness comes from
#: ``generator``, which is seeded by the step, so that a resumed run has the same batches as an uninterrupted one.
LossFn = Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


def learning_rate(step: int, steps: int, peak: float, warm_up: int, flat: float) -> float:
    """Learning rate of a step: linear warm-up, constant until the share ``flat`` of the run, then a cosine to 2 %."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = step / steps
    if done < flat:
        return peak
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - flat) / (1 - flat))))


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Averages all gradients in one reduction, because many small ones would cost more than the step."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, averaged in zip(gradients, flat.div_(world).split([g.numel() for g in gradients]), strict=True):
        g.copy_(averaged.view_as(g))


def train(
    name: str,
    module: Trained,
    loss: LossFn,
    *,
    steps: int,
    lr: float,
    folder: Path,
    seed: int,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.01,
    warm_up: int = 100,
    flat: float = 0.3,
    ema: float = 0.0,
    clip: float = 1.0,
    save_every: int = 500,
) -> Trained:
    """Trains ``module`` for ``steps`` and returns it in eval mode, or its moving average if ``ema`` > 0.

    A checkpoint is written to ``folder/<name>.pt`` every ``save_every`` steps. A stopped run continues from it, and a
    finished run returns at once. Inside a process group every process has batches of its own, and the gradients are
    averaged.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    average = deepcopy(module).eval().requires_grad_(False) if ema else None
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        module.load_state_dict(saved["module"])
        optimiser.load_state_dict(saved["optimiser"])
        if average is not None:
            average.load_state_dict(saved["average"])

    def save(step: int) -> None:
        state = {"step": step, "module": module.state_dict(), "optimiser": optimiser.state_dict()}
        if average is not None:
            state["average"] = average.state_dict()
        with written_whole(path) as draft:
            torch.save(state, draft)

    device = parameters[0].device
    module.train()
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=5, disable=rank > 0)
    for step in bar:
        generator = torch.Generator(device=device).manual_seed((seed * 1_000_003 + step) * world + rank)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warm_up, flat)
        value, figures = loss(step, generator)
        if not torch.isfinite(value):
            raise FloatingPointError(f"{name}: the loss is {value.item()} at step {step}; lower lr={lr}")
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        if world > 1:
            _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        if average is not None:
            decay = min(ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
                for kept, fresh in zip(average.buffers(), module.buffers(), strict=True):
                    kept.copy_(fresh)
        if step % 20 == 0:
            bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
        if rank == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
            save(step + 1)
    return (average if average is not None else module).eval()

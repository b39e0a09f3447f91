"""The training loop of all parts of the family. It counts in steps and can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from weir.files import written_whole

Trained = TypeVar("Trained", bound=nn.Module)

#: ``loss(step, generator)``: the loss of one batch, and figures for the progress bar. All randomness comes from
#: ``generator``, which is seeded by the step, so that a resumed run has the same batches as an uninterrupted one.
LossFn = Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how a part is trained, with AdamW.

    Attributes:
        batch: examples of a step; the loss draws them.
        lr: the largest learning rate.
        warm_up: steps until it is reached.
        flat: share of the run until it falls.
        ema: decay of the moving average of the weights; 0: none is kept.
        clip: largest norm of the gradients.
        save_every: steps between checkpoints.
    """

    steps: int
    lr: float
    seed: int
    batch: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warm_up: int = 100
    flat: float = 0.3
    ema: float = 0.0
    clip: float = 1.0
    save_every: int = 500

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, constant until the share ``flat`` of the run, then a cosine to 2 %."""
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        done = step / self.steps
        if done < self.flat:
            return self.lr
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - self.flat) / (1 - self.flat))))


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Averages all gradients in one reduction, because many small ones would cost more than the step."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, averaged in zip(gradients, flat.div_(world).split([g.numel() for g in gradients]), strict=True):
        g.copy_(averaged.view_as(g))


def train(name: str, module: Trained, loss: LossFn, schedule: Schedule, folder: Path) -> Trained:
    """Trains ``module`` and returns it in eval mode, or the moving average of its weights if the schedule keeps one.

    Checkpoints are written to ``folder/<name>.pt``. A stopped run continues from the last one, and a finished run
    returns at once. Inside a process group every process has batches of its own, and the gradients are averaged.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    run, steps = _Run(module, schedule, folder / f"{name}.pt"), schedule.steps
    device = run.parameters[0].device
    module.train()
    bar = tqdm(range(run.start, steps), desc=name, initial=run.start, total=steps, mininterval=5, disable=rank > 0)
    for step in bar:
        generator = torch.Generator(device=device).manual_seed((schedule.seed * 1_000_003 + step) * world + rank)
        value, figures = loss(step, generator)
        if not torch.isfinite(value):
            raise FloatingPointError(f"{name}: the loss is {value.item()} at step {step}; lower lr={schedule.lr}")
        run.optimise(value, step, world)
        if step % 20 == 0:
            bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
        if rank == 0 and ((step + 1) % schedule.save_every == 0 or step + 1 == steps):
            run.save(step + 1)
    return cast(Trained, run.result.eval())


class _Run:
    """The module, its optimiser and its moving average, as the last checkpoint has them.

    Attributes:
        start: the first step to run.
    """

    def __init__(self, module: nn.Module, schedule: Schedule, path: Path):
        self._module, self._schedule, self._path = module, schedule, path
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self.parameters, lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay
        )
        self._average = deepcopy(module).eval().requires_grad_(False) if schedule.ema else None
        self.start = 0
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.start = saved["step"]
            module.load_state_dict(saved["module"])
            self._optimiser.load_state_dict(saved["optimiser"])
            if self._average is not None:
                self._average.load_state_dict(saved["average"])

    @property
    def result(self) -> nn.Module:
        """The moving average if there is one, else the module."""
        return self._module if self._average is None else self._average

    def optimise(self, loss: torch.Tensor, step: int, world: int) -> None:
        """One step of the optimiser, and of the moving average."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._schedule.learning_rate(step)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            _average_gradients(self.parameters, world)
        nn.utils.clip_grad_norm_(self.parameters, self._schedule.clip)
        self._optimiser.step()
        if self._average is not None:
            decay = min(self._schedule.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self._average.parameters()), list(self._module.parameters()), 1 - decay)
                for kept, fresh in zip(self._average.buffers(), self._module.buffers(), strict=True):
                    kept.copy_(fresh)

    def save(self, step: int) -> None:
        """Writes the checkpoint before this step."""
        state = {"step": step, "module": self._module.state_dict(), "optimiser": self._optimiser.state_dict()}
        if self._average is not None:
            state["average"] = self._average.state_dict()
        with written_whole(self._path) as draft:
            torch.save(state, draft)

"""A training run that is stopped and resumed ends with the weights of an uninterrupted run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from training.loop import Schedule, train


def run(folder: Path, steps: int, stop_after: int | None = None) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_after:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=generator)
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

    return train("line", model, loss, Schedule(steps=steps, lr=0.05, seed=1, warm_up=2, ema=0.9, save_every=5), folder)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 20)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 20, stop_after=13)
    resumed = run(tmp_path / "parts", 20)
    assert torch.equal(whole.weight, resumed.weight)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path, 10)
    again = run(tmp_path, 10, stop_after=0)
    assert torch.equal(first.weight, again.weight)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="bad: the loss is nan at step 0"):
        train("bad", model, lambda *_: (model.weight.sum() * torch.nan, {}), Schedule(steps=3, lr=1, seed=0), tmp_path)


def test_the_learning_rate_rises_stays_constant_and_falls() -> None:
    schedule = Schedule(steps=100, lr=1.0, seed=0, warm_up=10, flat=0.5)
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[99] == pytest.approx(0.02, abs=0.01)

"""A dataclass of options is one value to a command, and options of the command line to users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cli.option_groups import grouped


@dataclass(frozen=True, slots=True)
class Load:
    """A group with an option that is required and one that is not."""

    rate: Annotated[float, typer.Option(min=0, help="Requests per second.")]
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None


@dataclass(frozen=True, slots=True)
class Replayed(Load):
    """A group that extends another one, and changes what one of its options says."""

    seed: Annotated[int | None, typer.Option(help="Of the arrivals.")] = 7
    loud: Annotated[bool, typer.Option("--loud", help="Say more.")] = False


@pytest.fixture
def taken() -> list[tuple[str, object, bool]]:
    return []


@pytest.fixture
def run(taken):
    app = typer.Typer()

    @app.command()
    @grouped
    def simulate(trace: str, *, load: Load, plot: Annotated[bool, typer.Option()] = False) -> None:
        """Simulate a trace."""
        taken.append((trace, load, plot))

    @app.command()
    @grouped
    def replay(trace: str, *, load: Replayed, plot: Annotated[bool, typer.Option()] = False) -> None:
        """Replay a trace."""
        taken.append((trace, load, plot))

    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


def test_a_command_gets_the_options_of_a_group_as_one_value(run, taken) -> None:
    assert run("simulate", "a.csv", "--rate", "2", "--plot").exit_code == 0
    assert taken == [("a.csv", Load(2.0), True)]


def test_commands_share_groups_and_a_group_extends_another_one(run, taken) -> None:
    assert run("replay", "a.csv", "--rate", "2", "--loud").exit_code == 0
    assert taken == [("a.csv", Replayed(2.0, 7, loud=True), False)]


def test_options_of_a_group_are_checked_and_described_as_all_others(run, taken) -> None:
    assert "Missing option '--rate'" in run("simulate", "a.csv").output
    assert "'--rate'" in run("simulate", "a.csv", "--rate", "-1").output
    described = run("replay", "--help").output
    assert described.index("--rate") < described.index("--seed") < described.index("--loud") < described.index("--plot")
    assert "Of the arrivals." in described
    assert "Replay a trace." in described
    assert not taken

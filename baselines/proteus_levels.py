"""Proteus (Ahmad et al., ASPLOS 2024): a model for every GPU by a MILP, blind to prompts."""

from __future__ import annotations

from baselines.pac import PromptAgnostic
from weir.approximation_levels import Ladder, Level, Strategy


class ProteusLevels(PromptAgnostic):
    """The prompt-agnostic allocation over smaller models; over the levels there are when the ladder has none."""

    name = "proteus-levels"
    needs_states = False

    def chosen_levels(self, ladder: Ladder) -> tuple[Level, ...]:
        smaller = ladder.of(Strategy.SM)
        return smaller if len(smaller) > 1 else ladder.of(Strategy.AC)

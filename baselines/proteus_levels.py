"""Proteus (Ahmad et al., ASPLOS 2024) on a ladder of levels: a MILP gives every GPU a model, independent of prompts."""

from __future__ import annotations

from baselines.pac import PromptAgnostic
from weir.approximation_levels import Ladder, Level, Strategy


class ProteusLevels(PromptAgnostic):
    """The prompt-agnostic allocation over smaller models, or over the cached levels when the ladder has none."""

    name = "proteus-levels"
    needs_states = False

    def chosen_levels(self, ladder: Ladder) -> tuple[Level, ...]:
        smaller = ladder.of(Strategy.SM)
        return smaller if len(smaller) > 1 else ladder.of(Strategy.AC)

"""NIRVANA (Agarwal et al., NSDI 2024): the similarity to the cache alone chooses K, whatever the load."""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy, LevelSetting
from weir.errors import ConfigError


class Nirvana(LevelPolicy):
    """Raises ConfigError for a ladder without ``similarity_shares``."""

    name = "nirvana"

    def __init__(self, setting: LevelSetting):
        super().__init__(setting)
        if not setting.ladder.similarity_shares:
            raise ConfigError(
                f"policy nirvana: the ladder of {setting.ladder.family} has no similarity_shares; "
                "add the shares of requests by K that similarity gives"
            )

    def plan(self, demand_rps: float) -> LevelPlan:
        return self.place((), [self.setting.ladder.similarity_shares])

"""A family without weights, with a profile of short latencies."""

from typing import Any, TypeVar

from weir.config import FamilyConfig
from weir.profiles import Profile
from weir.prompt_levels import LevelAbout, LevelRecord

FAMILY: dict[str, Any] = {
    "name": "toy",
    "pipeline": "nobody/nothing",
    "size": 64,
    "sizes": [32],
    "light": {"name": "toy-light", "scheduler": "ddim", "steps": 2, "guidance": 1},
    "heavy": {"name": "toy-heavy", "scheduler": "ddim", "steps": 50, "guidance": 2},
}
PROFILE: dict[str, Any] = {
    "family": "toy",
    "device": "none",
    "light": {"name": "toy-light", "steps": 2, "batch_sizes": [1, 4], "latency_s": [0.02, 0.05]},
    "heavy": {"name": "toy-heavy", "steps": 50, "batch_sizes": [1, 4], "latency_s": [0.1, 0.25]},
}
_RECORD = LevelRecord(share=0.5, confidences=(0.2, 0.8), quality=(1.0, 0.9))
#: Metadata of a level head.
LEVELS = LevelAbout(
    encoder="clip-1",
    family="f",
    rungs=("heavy-50", "light"),
    alpha=0.95,
    prompts=100,
    records=(_RECORD, _RECORD),
    quality=(1.0, 0.9),
    accuracy=0.6,
    mean_level_error=0.4,
    confusion=((30, 20), (20, 30)),
)

Ladder = TypeVar("Ladder", FamilyConfig, Profile)


def with_variants(ladder: Ladder, **changes: dict[str, Any]) -> Ladder:
    """Returns the family or profile with changed fields of some of its variants."""
    changed = {key: ladder.variants[key].model_copy(update=fields) for key, fields in changes.items()}
    return ladder.model_copy(update={"variants": {**ladder.variants, **changed}})

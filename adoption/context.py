"""What all stages of an adoption share: the family, the prompts, the choices of the user, and where results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adoption.images import DrawnImages, Round
from adoption.ranking import Pair
from adoption.stages import Results
from quality.suite import Judge, load_judge
from weir.config import FamilyConfig
from workers.models.device import device_of
from workers.models.family import Family

#: Called with what is being done, the number of finished parts and the number of all parts.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user chooses.

    Attributes:
        measure: kind of the measure of quality: attributes, clip, pick, or module:name of one's own.
        clip, pick: model of the measure, by hub name or folder; None: the family's own.
        reference: folder of reference images, for the Fréchet distance; None: it is not measured.
        light_rounds: images of every prompt by each lighter variant; the last variant generates one.
        pairs: other prompts that each light image is compared with.
        steps: training steps of a discriminator.
        trained_only: never chooses the discriminators that the family file names; they are measured all the same.
        batch_sizes: batch sizes to profile.
        cache_pairs: pairs of prompts to profile the cache with; 0: no cache.
        levels: numbers of steps of shorter runs of the last variant; empty: none are measured, and no level head.
        replicas, slo_s, demand_rps: the service to write; None for the last: what its first plan holds.
        keep: share of all-heavy quality to keep, for the report.
        threads: of torch on the CPU.
    """

    measure: str = "attributes"
    clip: str | None = None
    pick: str | None = None
    reference: Path | None = None
    light_rounds: int = 4
    pairs: int = 8
    steps: int = 600
    trained_only: bool = False
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    cache_pairs: int = 32
    levels: tuple[int, ...] = ()
    replicas: int = 4
    slo_s: float | None = None
    demand_rps: float | None = None
    keep: float = 0.97
    threads: int = 1

    @property
    def measure_name(self) -> str:
        """The measure and its model, for people."""
        models = [name for name in (self.clip, self.pick) if name]
        return " ".join((self.measure, *models))

    def part(self, *names: str) -> dict[str, Any]:
        """Some choices in the form of JSON."""
        every = asdict(self)
        return {name: str(every[name]) if isinstance(every[name], Path) else every[name] for name in names}


class Context:
    """The adoption of one family.

    Args:
        family: as its file says, with absolute paths.
        prompts: all different.
    """

    def __init__(
        self, family: FamilyConfig, prompts: list[str], choices: Choices, results: Results, report: Report | None = None
    ):
        self.family, self.prompts, self.choices, self.results = family, prompts, choices, results
        self._report = report

    def report(self, what: str, done: int, total: int) -> None:
        if self._report is not None:
            self._report(what, done, total)

    def done(self, stage: str) -> Mapping[str, Any]:
        """The result of a stage that is finished."""
        found = self.results.get(stage)
        assert found is not None, f"{stage} is not finished"
        return found

    @property
    def lighter(self) -> tuple[str, ...]:
        """Keys of all variants but the last."""
        return self.family.keys[:-1]

    @property
    def last(self) -> str:
        return self.family.keys[-1]

    @property
    def device(self) -> str:
        return str(device_of(self.family))

    @cached_property
    def plain(self) -> FamilyConfig:
        """The family without discriminators and checkers, which generation does not need."""
        variants = {key: it.model_copy(update={"discriminator": None}) for key, it in self.family.variants.items()}
        return self.family.model_copy(update={"variants": variants, "safety_checker": None})

    @cached_property
    def engine(self) -> Family:
        """The family's models."""
        return Family.load(self.plain, threads=self.choices.threads)

    @cached_property
    def judge(self) -> Judge:
        """The measure of quality."""
        return self.load_judge()

    def load_judge(self) -> Judge:
        """Loads the measure of quality.

        Raises:
            ConfigError: there is none of this name, or it cannot be loaded.
        """
        it = self.choices
        return load_judge(self.family, it.measure, clip=it.clip, pick=it.pick, device=self.device)

    @property
    def rounds(self) -> list[Round]:
        """All rounds of images: those of the first round of seeds first, then the others of the lighter variants."""
        first = [Round(key) for key in self.family.keys]
        shorter = [Round(self.last, steps=n) for n in self.choices.levels]
        more = [Round(key, n) for key in self.lighter for n in range(1, self.choices.light_rounds)]
        return [*first, *shorter, *more]

    def rounds_of(self, key: str) -> list[Round]:
        """The rounds of a lighter variant, the first one first."""
        return [round_ for round_ in self.rounds if round_.variant == key]

    def images(self, round_: Round) -> DrawnImages:
        return DrawnImages(self.results.folder("images"), round_, len(self.prompts))

    def scores(self, round_: Round) -> np.ndarray:
        """Scores of the images of a round for their own prompts, [N]; the stage ``scores`` is finished."""
        found: np.ndarray = np.load(self.results.folder("scores") / f"{round_.name}.npy", allow_pickle=False)
        return found

    def pair(self, key: str) -> Pair:
        """Scores of the first round of a lighter variant and of the last one; the stage ``scores`` is finished."""
        return Pair(self.scores(Round(key)), self.scores(Round(self.last)))

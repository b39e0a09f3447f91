"""The profiler measures every variant and batch size, and writes its file atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from testing.toy_family import with_variants
from tests.workers.samples import profile
from weir.config import FamilyConfig
from weir.core import ImageSize
from weir.errors import ConfigError, WeirError
from weir.profiles import load_profile
from workers.emulated import EmulatedEngine
from workers.engine.engine import OutOfMemory
from workers.profiler import Measurements, profile_family, write_profile


class SmallMemory(EmulatedEngine):
    """An emulated engine whose memory holds at most two images."""

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        if len(samples) > 2:
            raise OutOfMemory("no room")
        return super().step(samples)


def test_a_real_family_is_measured(embedded: FamilyConfig) -> None:
    seen: list[tuple[int, int, str]] = []
    measured = profile_family(
        embedded, Measurements([1, 2], 1, ["a red cat", "a dog"]), lambda *step: seen.append(step)
    )
    assert measured.light.batch_sizes == measured.heavy.batch_sizes == (1, 2)
    assert measured.heavy.latency_s[0] > measured.light.latency_s[0] > 0
    assert (measured.light.steps, measured.heavy.steps) == (1, 4)
    for variant in (measured.light, measured.heavy):
        assert variant.stepwise
        assert variant.fixed is not None
        assert variant.fixed.text_s > 0
        assert variant.fixed.decode_s > 0
        steps_s = [variant.steps * s for s in variant.step_s]
        assert all(steps < whole for steps, whole in zip(steps_s, variant.latency_s, strict=True))
    assert measured.device == "cpu, 1 thread"
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]


def test_profiling_an_emulated_profile_reproduces_it(embedded: FamilyConfig) -> None:
    given = profile(light_s=0.01, heavy_s=0.03, confidences=(0.25,))
    family = with_variants(embedded, heavy={"steps": 50})
    measured = profile_family(family, Measurements([1, 4], 3, ["a", "b", "c"]), engine=EmulatedEngine(given))
    assert measured.light.latency_s == pytest.approx(given.light.latency_s, rel=0.5)
    assert measured.heavy.latency_s == pytest.approx(given.heavy.latency_s, rel=0.5)
    assert measured.heavy.step_s == pytest.approx([s / 50 for s in given.heavy.latency_s], rel=0.5)
    assert measured.confidences == (0.25,) * 3


def test_every_judged_variant_of_a_ladder_is_measured_on_the_same_prompts(embedded: FamilyConfig) -> None:
    middle = embedded.heavy.model_copy(update={"name": "tiny-medium", "steps": 2})
    family = embedded.model_copy(
        update={"variants": {"light": embedded.light, "medium": middle, "heavy": embedded.heavy}}
    )
    given = profile(1e-9, 1e-9, confidences=(0.1, 0.2))
    timed = {"light": given.light, "medium": given.heavy, "heavy": given.heavy}
    timed["medium"] = given.heavy.model_copy(update={"confidences": (0.6, 0.7)})
    engine, prompts = EmulatedEngine(given.model_copy(update={"variants": timed})), [f"a {i}" for i in range(20)]
    measured = profile_family(family, Measurements([1, 4], 1, prompts), engine=engine)
    assert measured.keys == family.keys
    pairs = set(zip(measured.variant("light").confidences, measured.variant("medium").confidences, strict=True))
    assert pairs == {(0.1, 0.6), (0.2, 0.7)}, "entry i of both belongs to prompt i"
    assert measured.heavy.confidences == (), "the last variant is not judged by default"
    judged = profile_family(family, Measurements([4], 1, prompts, judge_last=True), engine=engine)
    assert len(judged.heavy.confidences) == len(prompts)


def test_a_batch_size_that_does_not_fit_memory_ends_the_list(embedded: FamilyConfig) -> None:
    engine = SmallMemory(profile())
    measured = profile_family(embedded, Measurements([1, 2, 4, 8], 1, ["a"] * 5), engine=engine)
    assert measured.light.batch_sizes == (1, 2)
    assert len(measured.confidences) == 5
    with pytest.raises(ConfigError, match="a batch of 4 images"):
        profile_family(embedded, Measurements([4], 1, ["a"]), engine=engine)


@pytest.mark.parametrize(
    ("sizes", "repeats", "prompts", "named"),
    [
        ([], 1, ["a"], "batch_sizes"),
        ([0], 1, ["a"], "batch_sizes"),
        ([1], 0, ["a"], "repeats"),
        ([1], 1, [], "prompts"),
    ],
)
def test_an_invalid_argument_is_named_before_anything_is_loaded(
    embedded: FamilyConfig, sizes: list[int], repeats: int, prompts: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        profile_family(embedded, Measurements(sizes, repeats, prompts))


def test_a_written_profile_reads_back_and_leaves_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiny.json"
    write_profile(profile(), path)
    assert load_profile(path) == profile()
    assert [f.name for f in path.parent.iterdir()] == ["tiny.json"]


def test_other_sizes_are_measured_on_request(embedded: FamilyConfig) -> None:
    family = FamilyConfig.model_validate(embedded.model_dump() | {"sizes": ["48x32"]})
    seen: list[tuple[int, int, str]] = []
    measured = profile_family(
        family,
        Measurements([1, 2], 1, ["a"], sizes=[family.size, ImageSize(48, 32)]),
        lambda *step: seen.append(step),
    )
    assert measured.size == family.size
    for variant in (measured.light, measured.heavy):
        assert list(variant.sizes) == [(48, 32)]
        assert variant.sizes[ImageSize(48, 32)].batch_sizes == (1, 2)
    assert seen[-1][0] == seen[-1][1]


def test_a_size_that_does_not_fit_memory_is_left_out(embedded: FamilyConfig) -> None:
    class OnlySmall(EmulatedEngine):
        def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
            if samples[0].job.recipe.size != embedded.size:
                raise OutOfMemory("no room")
            return super().step(samples)

    family = FamilyConfig.model_validate(embedded.model_dump() | {"sizes": ["48x32"]})
    measured = profile_family(
        family, Measurements([1], 1, ["a"], sizes=[ImageSize(48, 32)]), engine=OnlySmall(profile(1e-4, 1e-4))
    )
    assert measured.heavy.sizes == {}


def test_a_size_that_the_family_does_not_allow_is_refused(embedded: FamilyConfig) -> None:
    with pytest.raises(ConfigError, match="sizes has 48x33; tiny allows 32x32"):
        profile_family(embedded, Measurements([1], 1, ["a"], sizes=[ImageSize(48, 33)]))

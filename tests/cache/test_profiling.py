"""Thresholds come from measured pairs: the lowest similarity from which enough quality is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cache.policy.selector import By, load_selector
from cache.profiling import (
    CacheProfiling,
    EncodedLog,
    Measured,
    ProfileOrigin,
    Runs,
    choose_pairs,
    measure,
    measure_judged,
    thresholds,
    write_profile,
)
from weir.errors import ConfigError

KS = (5, 25)


def pairs(count: int = 400) -> Measured:
    """Quality is kept above a similarity of 0.5 at K = 5, and of 0.9 at K = 25."""
    rng = np.random.default_rng(0)
    similarity = rng.uniform(0, 1, count)
    noise = 0.02 * rng.normal(size=(2, count))
    resumed = {k: np.where(similarity > s, 1.0, 0.5) + n for k, s, n in zip(KS, (0.5, 0.9), noise, strict=True)}
    return Measured(similarity, np.ones(count), resumed)


def test_the_threshold_lies_where_quality_begins_to_hold() -> None:
    selector = thresholds(pairs(), 0.95, 50)
    assert [k for _, k in selector.levels] == [25, 5]
    assert selector.levels[0][0] == pytest.approx(0.9, abs=0.03)
    assert selector.levels[1][0] == pytest.approx(0.5, abs=0.03)


def test_a_k_that_never_holds_is_left_out() -> None:
    found = pairs()
    found.resumed[25][:] = 0.5
    assert thresholds(found, 0.95, 50).ks == (5,)


def test_a_cache_that_only_lowers_quality_gets_no_threshold() -> None:
    found = pairs()
    for quality in found.resumed.values():
        quality[:] = 0.5
    assert thresholds(found, 0.95, 50).select(1.0) == 0


def test_a_larger_k_is_never_trusted_at_a_lower_similarity() -> None:
    found = pairs()
    found.resumed[5], found.resumed[25] = found.resumed[25], found.resumed[5]
    (high, more), (low, less) = thresholds(found, 0.95, 50).levels
    assert (more, less) == (25, 5)
    assert high > low


def test_pairs_cover_similarities_from_far_to_near() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(300, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = choose_pairs(vectors, 200, seed=0)
    cosines = np.array([vectors[q] @ vectors[c] for q, c in chosen])
    assert all(q != c for q, c in chosen)
    assert np.percentile(cosines, 20) < 0.5 < np.percentile(cosines, 60)


def test_every_pair_is_generated_whole_and_resumed_at_every_k() -> None:
    seen = []

    def draw(prompts, seeds, states):
        seen.append((list(prompts), list(seeds), list(states)))
        passed = [{k: (p, k) for k in KS} for p in prompts]
        return Runs(np.ones(len(prompts)), passed, [None] * len(prompts), np.zeros(len(prompts)))

    prompts = [str(i) for i in range(10)]
    found = measure(EncodedLog(prompts, np.eye(10)), KS, draw, CacheProfiling(count=10), batch=4)
    assert len(found.similarity) == 10
    cached, asked, at_5, _ = seen[:4]
    assert asked[2] == [None] * 4
    assert at_5[0] == asked[0]
    assert at_5[1] == asked[1] != cached[1]
    assert at_5[2] == [(p, 5) for p in cached[0]]


def judged(confidence: float, accept: float = 0.9, unseen: tuple[int, ...] = ()) -> tuple[Measured, list]:
    """Three cached prompts and a query. The first one is nearest to it; the images of the second and third fit it
    better, and only the second is near enough to be judged. The resumed image has quality 0.7 and the given
    confidence, that of the whole run 0.8 and 0.5. The runs ``unseen`` have no features."""
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [1, 0]], float)
    resumed: list = []

    def draw(prompts, seeds, states):
        resumed.extend(s for s in states if s is not None)
        mine = np.array([s is not None for s in states])
        seen = [None if seed in unseen else np.array([seed], np.float16) for seed in seeds]
        states = [{k: (s, k) for k in KS} for s in seeds]
        return Runs(np.where(mine, 0.7, 0.8), states, seen, np.where(mine, confidence, 0.5))

    def weigh(seen, prompt):
        assert prompt == "query"
        return np.array([0.1, 0.7, 0.9])[seen[:, 0].astype(int)]

    how = CacheProfiling(count=1, candidates=2, stride=5, accept=accept)
    return measure_judged(EncodedLog(["a", "b", "c", "query"], vectors), 50, draw, weigh, how), resumed


def test_by_confidence_the_best_judged_of_the_neighbours_is_resumed() -> None:
    found, resumed = judged(0.95)
    assert resumed == [(1, 25)]
    assert found.similarity == pytest.approx([0.7])


def test_by_confidence_a_neighbour_without_features_is_skipped() -> None:
    found, resumed = judged(0.95, unseen=(0,))
    assert resumed == [(2, 25)], "the second and third are the two nearest that can be judged"
    assert found.similarity == pytest.approx([0.9])
    with pytest.raises(ConfigError, match="no features of any cached image"):
        judged(0.95, unseen=(0, 1, 2))


@pytest.mark.parametrize(("confidence", "quality", "ran"), [(0.95, 0.7, 5), (0.4, 0.8, 55), (0.6, 0.7, 55)])
def test_a_doubted_image_costs_both_runs_and_the_better_judged_is_the_answer(confidence, quality, ran) -> None:
    found, _ = judged(confidence)
    assert (found.resumed[25], found.ran[25]) == (pytest.approx([quality]), [ran])


def test_a_hit_has_to_save_steps_too() -> None:
    found = pairs()
    ran = {k: np.where(found.similarity > 0.7, 5, 55) for k in KS}
    (_, more), (least, less) = thresholds(replace(found, ran=ran, by=By.CONFIDENCE), 0.95, 50, stride=5).levels
    assert (more, less) == (25, 5)
    assert least == pytest.approx(0.7, abs=0.03), "0.5 by quality alone"


def test_a_profile_is_what_the_selector_reads(tmp_path) -> None:
    path, found = tmp_path / "cache.json", pairs()
    selector = thresholds(found, 0.95, 50)
    origin = ProfileOrigin(family="f", model="m", encoder="e", judge="attributes", alpha=0.95)
    write_profile(path, found, selector, origin)
    assert load_selector(path) == selector
    assert json.loads(path.read_text())["pairs"] == 400
    with pytest.raises(ConfigError, match="is a folder"):
        write_profile(tmp_path, found, selector, origin)


def test_alpha_is_a_share() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        thresholds(pairs(), 1.5, 50)

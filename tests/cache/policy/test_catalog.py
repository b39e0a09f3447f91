"""The catalog's decisions: which state is resumed from, kept and evicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.index import VectorIndex
from cache.policy.catalog import Catalog, Found, Insert, Match, Rules
from cache.policy.eviction import POLICIES
from cache.policy.selector import PUBLISHED, By, Selector

KS = (5, 10, 15, 20, 25)
RULES = Rules(PUBLISHED["nirvana"])


def catalog(budget: int = 1000, rules: Rules = RULES, eviction: str = "weir") -> Catalog:
    return Catalog(rules, POLICIES[eviction](), budget, lambda: VectorIndex(2))


def at(cosine: float) -> np.ndarray:
    """The unit vector of this cosine to (1, 0)."""
    return np.array([cosine, (1 - cosine**2) ** 0.5], np.float32)


def test_a_similar_prompt_resumes_at_the_step_its_similarity_allows() -> None:
    cached = catalog()
    cached.insert("p", "a", at(1), dict.fromkeys(KS, 1))
    found = cached.find("p", at(0.87))
    assert found.match == Match("a", pytest.approx(0.87, abs=1e-4), 15, 15)


def test_entries_of_another_partition_are_not_found() -> None:
    cached = catalog()
    cached.insert("tenant-1", "a", at(1), dict.fromkeys(KS, 1))
    assert cached.find("tenant-2", at(1)).match is None
    assert cached.find("tenant-2", at(1)).similarity == -1


def test_a_hole_is_filled_by_another_neighbour_where_that_saves_more() -> None:
    cached = catalog()
    cached.insert("p", "near", at(0.97), {5: 1})
    cached.insert("p", "far", at(0.99), {20: 1})
    query = np.array([1, 0], np.float32)
    assert cached.find("p", query).match == Match("far", pytest.approx(0.99, abs=1e-4), 25, 20)
    cached.drop("far", 20)
    assert cached.find("p", query).k == 5


def test_by_confidence_the_best_judged_neighbour_serves_however_near_the_others_are() -> None:
    cached = catalog(rules=Rules(Selector(((0.8, 25), (0.5, 20)), by=By.CONFIDENCE), candidates=3))
    for name, cosine, confidence in (("near", 0.99, 0.1), ("fits", 0.5, 0.9), ("fair", 0.6, 0.85), ("far", -1, 1.0)):
        cached.insert("p", name, at(cosine), dict.fromkeys(KS, 1), np.array([confidence], np.float16))
    weigh = lambda seen: seen[:, 0].astype(float)  # noqa: E731
    query = np.array([1, 0], np.float32)
    found = cached.find("p", query, weigh=weigh)
    assert found.match == Match("fits", pytest.approx(0.5, abs=1e-4), 25, 25)
    assert found.similarity == pytest.approx(0.99, abs=1e-4)
    cached.drop("fits", 25)
    cached.drop("fair", 25)
    assert cached.find("p", query, weigh=weigh).match == Match("fits", pytest.approx(0.5, abs=1e-4), 25, 20)
    assert cached.find("p", query).match is None, "nobody judges"


def test_by_confidence_every_whole_run_is_kept() -> None:
    selector = Selector(((0.5, 25),), by=By.CONFIDENCE, stride=5)
    hit = Found(1.0, Match("a", 1.0, 25, 25))
    assert catalog(rules=Rules(selector)).keeps(hit, KS) == KS
    assert catalog().keeps(hit, KS) == ()


def test_an_image_without_features_is_not_found_by_confidence() -> None:
    cached = catalog(rules=Rules(Selector(((0.5, 25),), by=By.CONFIDENCE)))
    cached.insert("p", "a", at(1), dict.fromkeys(KS, 1))
    assert cached.find("p", at(1), weigh=lambda seen: np.ones(len(seen))).match is None


def test_an_entry_leaves_the_index_with_its_last_state() -> None:
    cached = catalog()
    cached.insert("p", "a", at(1), {5: 1, 10: 1})
    cached.drop("a", 10)
    assert cached.find("p", at(1)).k == 5
    cached.drop("a", 5)
    assert cached.find("p", at(1)).match is None
    assert "a" not in cached
    assert cached.used_bytes == 0


def test_a_partition_without_entries_keeps_no_index() -> None:
    cached = catalog(budget=10)
    for i in range(100):  # a client that never uses the same guidance twice
        cached.insert(f"p|{i}", str(i), at(1), {5: 5})
    assert sorted(cached.entries()) == ["98", "99"]
    assert len(cached._indexes) == 2
    cached.restore("q", ["nothing"], at(1).reshape(1, 2), [{}])
    assert "q" not in cached._indexes
    cached.insert("p|1", "back", at(1), {5: 5})
    assert cached.find("p|1", at(1)).k == 5


def test_a_pinned_state_is_never_evicted() -> None:
    cached = catalog(budget=10)
    cached.insert("p", "a", at(1), {25: 10})
    match = cached.find("p", at(1)).match
    assert match is not None
    cached.pins.add("a", (match.k,))
    cached.insert("p", "b", at(0), {25: 10})
    assert cached.stored("a") == (25,)
    cached.pins.remove("a", (match.k,))
    cached.insert("p", "c", at(-1), {25: 10})
    assert cached.used_bytes <= 10


def test_states_larger_than_the_budget_are_not_inserted() -> None:
    cached = catalog(budget=10)
    cached.insert("p", "small", at(0), {5: 5})
    assert cached.insert("p", "a", at(1), {5: 6, 10: 6}) == [("p", "a", 5), ("p", "a", 10)]
    assert cached.entries() == ["small"]


def test_nirvana_inserts_nothing_after_a_hit_and_weir_the_states_above() -> None:
    for insert, kept in ((Insert.MISSES, ()), (Insert.ALL, (20, 25))):
        cached = catalog(rules=Rules(PUBLISHED["nirvana"], insert))
        assert cached.keeps(cached.find("p", at(1)), KS) == KS
        cached.insert("p", "a", at(1), dict.fromkeys(KS, 1))
        assert cached.keeps(cached.find("p", at(0.87)), KS) == kept
        assert cached.keeps(cached.find("p", at(1)), KS) == ()


def test_entries_of_another_encoder_are_not_found_count_and_are_evicted_first() -> None:
    cached = catalog(budget=10)
    cached.restore("theirs", ["t"], None, [{5: 6}])
    cached.insert("p", "a", at(1), {5: 4})
    assert cached.find("theirs", at(1)).match is None
    assert cached.used_bytes == 10
    assert cached.insert("p", "b", at(0), {5: 4}) == [("theirs", "t", 5)]
    assert sorted(cached.entries()) == ["a", "b"]


@pytest.mark.parametrize("eviction", POLICIES)
@given(
    seen=st.lists(
        st.tuples(st.floats(-1, 1), st.dictionaries(st.sampled_from(KS), st.integers(1, 40), min_size=1)), max_size=40
    )
)
def test_the_budget_holds_and_every_state_is_accounted_for(eviction: str, seen: list) -> None:
    cached = catalog(budget=100, eviction=eviction)
    here: dict[tuple[str, int], int] = {}
    for i, (cosine, sizes) in enumerate(seen):
        found = cached.find("p", at(cosine))
        if found.match is not None:
            assert (found.match.entry, found.match.k) in here
            cached.use(found.match.entry, found.match.k, found.match.wanted)
        leaving = {(entry, k) for _, entry, k in cached.insert("p", str(i), at(cosine), sizes)}
        here = {key: size for key, size in here.items() if key not in leaving}
        here |= {(str(i), k): size for k, size in sizes.items() if (str(i), k) not in leaving}
        assert cached.used_bytes == sum(here.values()) <= 100
        assert {(e, k) for e in cached.entries() for k in cached.stored(e)} == set(here)

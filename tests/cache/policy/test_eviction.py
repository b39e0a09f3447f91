"""The eviction policies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.policy.eviction import POLICIES, EvictionPolicy, Fifo, Lcbfu, Lfu, Lru, Weir, eviction_policy
from weir.errors import ConfigError

SIZES = dict.fromkeys((5, 10, 15, 20, 25), 131_072)


def drain(policy: EvictionPolicy) -> list[tuple]:
    left = []
    while (victim := policy.victim()) is not None:
        policy.remove(*victim)
        left.append(victim)
    return left


def test_fifo_evicts_the_oldest_state_regardless_of_uses() -> None:
    policy = Fifo()
    policy.insert("a", {5: 1})
    policy.insert("b", {5: 1})
    policy.use("a", 5, 5)
    assert drain(policy) == [("a", 5), ("b", 5)]


def test_lru_keeps_what_was_used_last() -> None:
    policy = Lru()
    policy.insert("a", {5: 1, 10: 1})
    policy.insert("b", {5: 1})
    policy.use("a", 5, 5)
    assert drain(policy) == [("a", 10), ("b", 5), ("a", 5)]


def test_lfu_keeps_what_was_used_most() -> None:
    policy = Lfu()
    policy.insert("a", {5: 1})
    policy.insert("b", {5: 1})
    policy.use("a", 5, 5)
    assert drain(policy) == [("b", 5), ("a", 5)]


def test_lcbfu_weighs_uses_by_the_steps_they_saved_and_starts_at_zero() -> None:
    policy = Lcbfu()
    policy.insert("a", {5: 1, 25: 1})
    policy.insert("b", {10: 1})
    for _ in range(3):
        policy.use("a", 5, 5)
    policy.use("a", 25, 25)
    policy.insert("newcomer", {25: 1})
    assert drain(policy) == [("b", 10), ("newcomer", 25), ("a", 5), ("a", 25)]


def test_weir_first_evicts_states_whose_lower_neighbours_can_replace_them() -> None:
    policy = Weir()
    policy.insert("a", SIZES)
    for wanted, times in ((5, 50), (10, 25), (15, 3), (20, 2), (25, 9)):
        for _ in range(times):
            policy.use("someone", 5, wanted)
    assert [k for _, k in drain(policy)] == [20, 15, 25, 10, 5]


def test_weir_evicts_a_large_state_before_a_small_one_that_saves_as_much() -> None:
    policy = Weir()
    policy.insert("large", {5: 524_288})
    policy.insert("small", {5: 131_072})
    assert drain(policy) == [("large", 5), ("small", 5)]


def test_where_hits_insert_nothing_weir_evicts_states_that_serve_distant_prompts() -> None:
    def first_to_go(after_hits: bool) -> tuple[str, int] | None:
        policy = Weir(after_hits=after_hits)
        policy.insert("far", {5: 131_072})
        policy.insert("near", {25: 131_072})
        for entry, k, times in (("far", 5, 20), ("near", 25, 2)):
            for _ in range(times):
                policy.use(entry, k, k)
        return policy.victim()

    assert first_to_go(after_hits=True) == ("near", 25)
    assert first_to_go(after_hits=False) == ("far", 5)


def test_an_unknown_policy_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ConfigError, match="'rand'; choose one of fifo, lru, lfu, lcbfu, weir"):
        eviction_policy("rand")


def test_weir_evicts_states_that_were_popular_long_ago() -> None:
    policy = Weir()
    policy.insert("favourite", {5: 131_072})
    for _ in range(20):
        policy.use("favourite", 5, 5)
    policy.insert("0", {5: 131_072})
    for i in range(1, 200):
        policy.insert(str(i), {5: 131_072})
        policy.remove(*policy.victim())
        if "favourite" not in policy._entries:
            break
    assert "favourite" not in policy._entries


@pytest.mark.parametrize("name", POLICIES)
def test_a_state_that_is_being_read_is_never_evicted(name: str) -> None:
    policy = POLICIES[name]()
    policy.insert("a", {5: 1, 10: 1})
    policy.insert("b", {5: 1})
    pinned = {("a", 5), ("b", 5)}
    assert policy.victim(pinned) == ("a", 10)
    policy.remove("a", 10)
    assert policy.victim(pinned) is None
    assert policy.victim() is not None


Event = st.tuples(
    st.sampled_from(["insert", "use", "remove", "evict"]), st.sampled_from("abcdefg"), st.sampled_from([5, 10, 25])
)


@pytest.mark.parametrize("name", POLICIES)
@given(events=st.lists(Event, max_size=60))
def test_every_state_is_known_until_it_is_removed(name: str, events: list) -> None:
    policy, here = POLICIES[name](), set()
    for what, entry, k in events:
        if what == "insert":
            policy.insert(entry, {k: 100 + k})
            here.add((entry, k))
        elif what == "use":
            policy.use(entry, k, k)
        elif what == "remove":
            policy.remove(entry, k)
            here.discard((entry, k))
        elif (victim := policy.victim()) is not None:
            assert victim in here
            policy.remove(*victim)
            here.discard(victim)
        assert len(policy) == len(here)
    assert set(drain(policy)) == here


def test_equal_histories_give_equal_victims() -> None:
    def history(policy: EvictionPolicy) -> list[tuple]:
        rng = np.random.default_rng(3)
        for i in range(200):
            policy.insert(str(i), SIZES)
            policy.use(str(rng.integers(i + 1)), 5, int(rng.choice([5, 10, 25])))
        return drain(policy)

    for name in POLICIES:
        assert history(POLICIES[name]()) == history(POLICIES[name]())

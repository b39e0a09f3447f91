"""A replay of a log measures the savings of a cache without generating images."""

import numpy as np
import pytest

from cache.policy.approaches import APPROACHES, Approach, approach
from cache.policy.selector import By, Selector
from cache.replay import read_log, read_prompts, replay_prompts, replay_similarities
from weir.errors import ConfigError


def test_shares_and_savings_of_a_log_of_similarities_follow_the_published_rule_to_the_digit() -> None:
    similarities = [0.96, 0.95, 0.91, 0.86, 0.76, 0.7, 0.66, 0.65, 0.3, -0.2]
    found = replay_similarities(similarities, approach("nirvana")).to_dict()
    assert found["shares"] == {"0": 0.3, "5": 0.2, "10": 0.1, "15": 0.1, "20": 0.2, "25": 0.1}
    assert found["hit_ratio"] == 0.7
    assert found["steps_saved"] == (25 + 2 * 20 + 15 + 10 + 2 * 5) / (50 * 10)


@pytest.mark.parametrize(("name", "saved"), [("vanilla", 0), ("small-model", 1), ("gptcache", 0.5), ("pinecone", 0.75)])
def test_every_baseline_saves_steps_by_its_definition(name: str, saved: float) -> None:
    assert replay_similarities([0.9, 0.85, 0.7, 0.1], approach(name)).steps_saved == saved


def sessions(count: int = 300, seed: int = 0) -> np.ndarray:
    """Users who vary one prompt a few times before they turn to the next."""
    rng = np.random.default_rng(seed)
    vectors, now = [], None
    for _ in range(count):
        goes_on = now is not None and rng.random() > 0.3
        now = now + 0.3 * rng.normal(size=16) if goes_on else rng.normal(size=16)
        vectors.append(now / np.linalg.norm(now))
    return np.array(vectors, np.float32)


@pytest.mark.parametrize("eviction", ["fifo", "lru", "lfu", "lcbfu", "weir"])
def test_a_log_of_prompts_is_replayed_within_its_capacity(eviction: str) -> None:
    found = replay_prompts(sessions(), approach("weir"), eviction=eviction, capacity=40)
    assert found.states <= 40
    assert found.evicted > 0
    assert 0 < found.steps_saved < 0.5
    assert sum(found.served.values()) == found.requests == 300


def test_keeping_states_after_hits_saves_more_than_after_misses_only() -> None:
    ours, nirvana = (replay_prompts(sessions(), approach(name), eviction="lru") for name in ("weir", "nirvana"))
    assert ours.steps_saved > nirvana.steps_saved


def test_tenants_do_not_serve_each_other() -> None:
    vectors = np.repeat(sessions(50), 2, axis=0)
    alone = replay_prompts(vectors, approach("weir"), partitions=["a", "b"] * 50)
    shared = replay_prompts(vectors, approach("weir"))
    assert alone.steps_saved < shared.steps_saved


@pytest.mark.parametrize(
    "chosen", [approach("modm"), approach("crs"), approach("weir", Selector(((0.5, 25),), by=By.CONFIDENCE))]
)
def test_approaches_that_compare_with_images_cannot_replay_a_log(chosen: Approach) -> None:
    with pytest.raises(ConfigError, match="compares prompts with images"):
        replay_prompts(sessions(5), chosen)
    with pytest.raises(ConfigError, match="compares prompts with images"):
        replay_similarities([0.9, 0.4], chosen)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(APPROACHES)):
        approach("best")
    with pytest.raises(ConfigError, match="fifo, lru, lfu, lcbfu, weir"):
        replay_prompts(sessions(5), approach("weir"), eviction="best")


def test_a_log_is_read_by_its_header(tmp_path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("Scores,Queries,Caches\n0.9,a dog,a cat\n0.2,no dog,\n")
    log = read_log(path)
    assert log.similarities == [0.9, 0.2]
    assert log.prompts == ["a dog", "no dog"]
    lines = tmp_path / "log.txt"
    lines.write_text("a dog\n\nno dog\n")
    assert read_log(lines).prompts == ["a dog", "no dog"]


@pytest.mark.parametrize("name", ["log.csv", "log.txt"])
def test_a_byte_order_mark_is_skipped(tmp_path, name: str) -> None:
    path = tmp_path / name
    path.write_text("prompt\na dog\n", encoding="utf-8-sig")
    assert read_log(path).prompts[0] == {"log.csv": "a dog", "log.txt": "prompt"}[name]


def test_a_log_of_similarities_has_no_prompts(tmp_path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("Scores\n0.9\n")
    with pytest.raises(ConfigError, match="prompts are needed"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("log.csv", "Scores\nhigh\n", "line 2: the similarity is 'high'"),
        ("log.csv", "Scores\n0.5\n1.5\n", "line 3: the similarity is '1.5'"),
        ("log.csv", "Scores\nnan\n", "line 2"),
        ("log.csv", "a,b\n1,2\n", "no column of similarities"),
        ("log.csv", "", "no column of similarities"),
        ("log.csv", "Scores\n", "a header and no rows"),
        ("log.txt", "\n\n", "the log is empty"),
    ],
)
def test_a_mistake_in_a_log_is_named_with_its_line(tmp_path, name: str, text: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as refused:
        read_log(path)
    assert str(path) in refused.value.message


def test_a_missing_or_binary_log_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_log(tmp_path / "log.csv")
    (tmp_path / "log.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_log(tmp_path / "log.txt")

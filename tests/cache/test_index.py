"""The index finds the nearest prompt by cosine, exactly while small and by trained cells later."""

import threading

import numpy as np
import pytest

from cache.index import VectorIndex
from weir.errors import ConfigError

DIM = 32


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around a hundred centres, like prompts around themes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(100, DIM))
    vectors = centres[rng.integers(100, size=count)] + 0.5 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_an_empty_index_finds_nothing() -> None:
    assert VectorIndex(DIM).search(clustered(1)[0], 4) == []


def test_a_small_index_is_exact() -> None:
    vectors, queries = clustered(500), clustered(50, seed=1)
    index = VectorIndex(DIM)
    for i, vector in enumerate(vectors):
        index.add(i, vector)
    for query in queries:
        cosines = vectors @ query
        [(best, similarity), (second, _)] = index.search(query, 2)
        assert [best, second] == np.argsort(-cosines)[:2].tolist()
        assert similarity == pytest.approx(cosines.max(), abs=1e-5)


def test_a_removed_vector_is_not_found_and_a_replaced_one_at_its_new_position() -> None:
    a, b = clustered(2)
    index = VectorIndex(DIM)
    index.add(1, a)
    index.add(2, b)
    index.remove(1)
    index.remove(77)
    assert [i for i, _ in index.search(a, 5)] == [2]
    index.add(2, a)
    assert index.search(a)[0] == (2, pytest.approx(1, abs=1e-5))
    assert len(index) == 1


def test_growing_trains_cells_in_the_background_and_changes_no_answer() -> None:
    vectors = clustered(6_000)
    index = VectorIndex(DIM, exact_until=1_000)
    for i, vector in enumerate(vectors):
        index.add(i, vector)
        if i % 5 == 0:
            index.remove(i)
    index.settle()
    assert index.cells > 1
    kept = [i for i in range(6_000) if i % 5]
    assert len(index) == len(kept)
    found = [index.search(vectors[i])[0][0] for i in kept[::7]]
    assert np.mean(np.array(found) == kept[::7]) > 0.99
    assert not any(index.search(vectors[i])[0][0] == i for i in range(0, 6_000, 5))


def test_lookups_insertions_and_deletions_go_on_at_the_same_time() -> None:
    vectors = clustered(4_000)
    index = VectorIndex(DIM, exact_until=500)
    stop, failures = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            for i, similarity in index.search(vectors[0], 3):
                if not (0 <= i < 4_000 and -1.01 < similarity < 1.01):
                    failures.append((i, similarity))

    reader = threading.Thread(target=look)
    reader.start()
    for i, vector in enumerate(vectors):
        index.add(i, vector)
        if i > 100:
            index.remove(i - 100)
    index.settle()
    stop.set()
    reader.join()
    assert not failures
    assert len(index) == 101
    assert index.search(vectors[3_999])[0][0] == 3_999


def test_many_vectors_are_added_with_progress_and_trained_at_once() -> None:
    vectors, reported = clustered(20_000), []
    index = VectorIndex(DIM)
    index.add_many(range(20_000), vectors, lambda done, total: reported.append((done, total)))
    assert reported[-1] == (20_000, 20_000)
    assert len(reported) > 1
    assert index.cells > 1
    assert index.search(vectors[123])[0][0] == 123


@pytest.mark.parametrize("count", [300, 3_000])
def test_a_snapshot_brings_back_the_same_index(tmp_path, count: int) -> None:
    vectors = clustered(count)
    index = VectorIndex(DIM, exact_until=1_000)
    index.add_many(range(count), vectors)
    index.save(tmp_path / "index.faiss")
    restored = VectorIndex.load(tmp_path / "index.faiss")
    assert [restored.search(v, 3) for v in vectors[:20]] == [index.search(v, 3) for v in vectors[:20]]
    restored.remove(5)
    restored.add(5, vectors[6])
    assert len(restored) == count


def test_a_damaged_snapshot_is_refused_with_the_remedy(tmp_path) -> None:
    path = tmp_path / "index.faiss"
    with pytest.raises(ConfigError, match="rebuild it from the store"):
        VectorIndex.load(path)
    index = VectorIndex(DIM)
    index.add_many(range(50), clustered(50))
    index.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="rebuild it from the store"):
        VectorIndex.load(path)

"""Images behind URLs live as long as promised, within a bound, and no tenant replaces another's."""

from __future__ import annotations

from load_balancer.http.image_store import KEPT_S, ImageStore


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_image_lives_as_long_as_promised_and_no_longer() -> None:
    clock = Clock()
    store = ImageStore(clock=clock)
    store.put("acme", "a", b"image")
    clock.now += KEPT_S - 1
    assert store.get("a") == b"image"
    clock.now += 1
    assert (store.get("a"), store.size_bytes) == (None, 0)


def test_a_tenant_with_many_large_images_replaces_its_own() -> None:
    store = ImageStore(most_bytes=100)
    store.put("acme", "mine", b"x" * 40)
    for number in range(20):
        store.put("globex", f"theirs-{number}", b"x" * 25)
        assert store.size_bytes <= 100
    assert store.get("mine") == b"x" * 40
    assert [store.get(f"theirs-{number}") is not None for number in range(20)] == [False] * 18 + [True] * 2


def test_an_image_that_is_larger_than_the_store_replaces_no_other() -> None:
    store = ImageStore(most_bytes=100)
    store.put("acme", "small", b"x")
    store.put("acme", "large", b"x" * 101)
    assert (store.get("small"), store.get("large")) == (b"x", None)

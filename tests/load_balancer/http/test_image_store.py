"""Images behind URLs live as long as promised, within a bound, and no tenant replaces another's."""

from __future__ import annotations

from load_balancer.http.image_store import KEPT_S, LocalImages


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_an_image_lives_as_long_as_promised_and_no_longer() -> None:
    clock = Clock()
    store = LocalImages(clock=clock)
    await store.put("acme", "a", b"image")
    clock.now += KEPT_S - 1
    assert await store.get("a") == b"image"
    clock.now += 1
    assert (await store.get("a"), store.size_bytes) == (None, 0)


async def test_a_tenant_with_many_large_images_replaces_its_own() -> None:
    store = LocalImages(most_bytes=100)
    await store.put("acme", "mine", b"x" * 40)
    for number in range(20):
        await store.put("globex", f"theirs-{number}", b"x" * 25)
        assert store.size_bytes <= 100
    assert await store.get("mine") == b"x" * 40
    assert [await store.get(f"theirs-{number}") is not None for number in range(20)] == [False] * 18 + [True] * 2


async def test_an_image_that_is_larger_than_the_store_replaces_no_other() -> None:
    store = LocalImages(most_bytes=100)
    await store.put("acme", "small", b"x")
    await store.put("acme", "large", b"x" * 101)
    assert (await store.get("small"), await store.get("large")) == (b"x", None)

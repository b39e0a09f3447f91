"""Room that tenants share: it is bounded, and a tenant below its share loses nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from load_balancer.http.fair_room import FairRoom

ITEMS = st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.booleans())


@settings(derandomize=True)
@given(st.lists(ITEMS, max_size=60))
def test_the_room_is_bounded_and_a_tenant_below_its_share_keeps_everything(items: list[tuple[str, int, bool]]) -> None:
    room: FairRoom[int] = FairRoom(9, 30)
    kept: dict[int, tuple[str, int]] = {}
    for number, (tenant, size, useless) in enumerate(items):
        kept[number] = tenant, size
        before = dict(kept)
        for item in room.add(tenant, number, size, useless=useless):
            loser = kept.pop(item)[0]
            count = sum(it[0] == loser for it in before.values())
            size_bytes = sum(it[1] for it in before.values() if it[0] == loser)
            tenants = {it[0] for it in before.values()}
            assert count > 9 // len(tenants) or size_bytes > 30 // len(tenants)
            del before[item]
        assert len(room) == len(kept) <= 9
        assert room.size_bytes == sum(it[1] for it in kept.values()) <= 30
        assert all(item in room for item in kept)
        assert room.oldest == next(iter(kept), None)


def test_what_is_useless_leaves_first_and_then_the_oldest() -> None:
    room: FairRoom[str] = FairRoom(3, 100)
    assert room.add("a", "old") == []
    assert room.add("a", "cancelled", useless=True) == []
    assert room.add("a", "new") == []
    assert room.add("a", "newer") == ["cancelled"]
    assert room.add("b", "of another") == ["old"]
    assert room.add("a", "newest") == ["new"]


def test_an_item_that_is_larger_than_the_room_is_not_kept_and_takes_nothing_from_others() -> None:
    room: FairRoom[str] = FairRoom(3, 100)
    room.add("a", "small", 60)
    assert room.add("b", "large", 101) == ["large"]
    assert "small" in room


def test_a_removed_item_leaves_its_room_to_others() -> None:
    room: FairRoom[str] = FairRoom(1, 100)
    room.add("a", "one", 60)
    room.remove("one")
    room.remove("one")
    assert (len(room), room.size_bytes, room.oldest) == (0, 0, None)
    assert room.add("b", "two", 100) == []

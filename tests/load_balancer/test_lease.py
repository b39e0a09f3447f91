"""Of several controllers one publishes: the first, as long as it renews its lease."""

from __future__ import annotations

from load_balancer.lease import LEASE_S, Lease


def test_the_first_controller_keeps_the_lease_while_it_renews_it():
    lease = Lease()
    for second in range(100):
        assert lease.take("one", second)
        assert not lease.take("other", second + 0.5)


def test_another_controller_takes_over_when_the_lease_has_expired():
    lease = Lease()
    lease.take("one", 0.0)
    assert not lease.take("other", LEASE_S - 0.1)
    assert lease.take("other", LEASE_S)
    assert not lease.take("one", LEASE_S + 1)


def test_a_released_lease_can_be_taken_at_once():
    lease = Lease()
    lease.take("one", 0.0)
    lease.give_up("other")
    assert not lease.take("other", 1.0)
    lease.give_up("one")
    assert lease.take("other", 1.0)

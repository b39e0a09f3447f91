"""Repeated answers and polls: a rate in bytes for each caller, with a burst."""

from __future__ import annotations

import pytest

from load_balancer.admission.repetition import BURST_BYTES, BYTES_PER_S, LEAST_BYTES, RepetitionQuota
from weir.errors import RateLimited


def test_beyond_the_burst_a_caller_waits_for_what_it_got_again() -> None:
    quota = RepetitionQuota()
    assert quota.charge("alice", BURST_BYTES, now=0.0) == 0
    with pytest.raises(RateLimited, match="8 MiB/s for each key"):
        quota.check("alice", now=0.0)
    quota.check("bob", now=0.0)
    quota.check("alice", now=0.1)
    assert quota.charge("alice", BYTES_PER_S, now=0.5) == 0.5
    with pytest.raises(RateLimited) as refused:
        quota.check("alice", now=0.5)
    assert refused.value.retry_after_s is not None
    quota.check("alice", now=0.5 + refused.value.retry_after_s)


def test_every_poll_costs_something_and_what_is_not_used_does_not_add_up() -> None:
    quota = RepetitionQuota()
    quota.charge("alice", 0, now=0.0)
    for _ in range(BURST_BYTES // LEAST_BYTES):
        quota.check("alice", now=3600.0)
        quota.charge("alice", 0, now=3600.0)
    with pytest.raises(RateLimited):
        quota.check("alice", now=3600.0)

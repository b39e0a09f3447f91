"""The request headers ``Prefer`` and ``Idempotency-Key``."""

from __future__ import annotations

import pytest

from load_balancer.http.api_keys import Caller
from load_balancer.http.headers import Later, idempotency_key, later, seed_of
from weir.errors import InvalidRequest


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ([], None),
        (["return=minimal"], None),
        (["respond-async"], Later()),
        (["Respond-Async"], Later()),
        (["return=minimal, respond-async; foo=bar"], Later()),
        (["wait=5"], None),
        (["respond-async, wait=5"], Later(5.0)),
        (["wait=5", "respond-async"], Later(5.0)),
        (['respond-async, wait="5"'], Later(5.0)),
        (["respond-async, wait=-1"], Later()),
        (["respond-async, wait=²"], Later()),
        (["respond-async, wait=" + "9" * 400], Later()),
        ([",,;=,"], None),
    ],
)
def test_an_answer_is_postponed_as_rfc_7240_says(prefer, expected):
    assert later(prefer) == expected


@pytest.mark.parametrize("key", [None, "a", "8e03978e-40d5-43dd-bc93-6894a57f9324", '"quoted"', "a b", "x" * 255])
def test_keys_are_printable_ascii(key):
    assert idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", " ", " a", "a ", "x" * 256, "\x00", "a\nb", "schlüssel", "a\tb"])
def test_other_keys_are_refused_with_the_header_and_the_accepted_form(key):
    with pytest.raises(InvalidRequest, match="accepted: 1 to 255 characters") as refused:
        idempotency_key(key)
    assert refused.value.param == "Idempotency-Key"


def test_the_seed_of_a_key_is_always_the_same_and_each_caller_has_its_own():
    alice, bob = Caller("alice", "acme"), Caller("bob", "acme")
    assert seed_of(alice, "k") == seed_of(alice, "k")
    assert len({seed_of(alice, "k"), seed_of(bob, "k"), seed_of(alice, "l")}) == 3
    assert 0 <= seed_of(alice, "k") < 2**32

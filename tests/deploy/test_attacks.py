"""The attacks that take seconds, on a running service; ``make attack`` runs all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.attack import attacked
from testing.attacks import QUICK, RAW, Target, cancelled_jobs, raw_bytes

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked() as target:
        yield target


@pytest.mark.parametrize("attack", RAW)
async def test_raw_bytes_are_answered_in_the_format_of_the_api_before_ray_serve(target: Target, attack: str) -> None:
    found = await raw_bytes(target, attack)
    assert found.right, found.happened


@pytest.mark.parametrize("attack", QUICK)
async def test_the_service_stands_an_attack(target: Target, attack: str) -> None:
    found = await QUICK[attack](target)
    assert found.right, found.happened


async def test_jobs_that_are_begun_and_cancelled_make_no_other_key_forgotten(target: Target) -> None:
    found = await cancelled_jobs(target, 50)
    assert found.right, found.happened

"""Messages between processes are unchanged after serialisation, and curves are monotonic."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.adapters import AdapterUse, AdapterWeights
from weir.core import (
    CacheLookup,
    DeferralCurve,
    ImageRequest,
    ImageSize,
    LatencyProfile,
    Overrides,
    Resume,
    WarmStart,
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"overrides": Overrides(20, 3.5), "judge": True},
        {"resume": Resume("key", 10, 2, 0.9), "capture": "partition"},
        {"warm_start": WarmStart(b"latent", 5)},
        {
            "adapters": (
                AdapterUse("night", 0.7, AdapterWeights("/weights/night.safetensors")),
                AdapterUse("sepia", -1.0, AdapterWeights("someone/sepia", "abc", "sepia.safetensors")),
            )
        },
    ],
)
def test_a_request_is_unchanged_after_serialisation(fields: dict) -> None:
    request = ImageRequest("a", "a red circle", 1, ImageSize(64, 64), 1e9, **fields)
    assert ImageRequest.from_dict(request.to_dict(now=5.0), now=5.0) == request


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1e4))
def test_a_host_with_another_clock_has_the_same_time_left(ours: float, theirs: float, left_s: float) -> None:
    request = ImageRequest("a", "a red circle", 1, ImageSize(64, 64), deadline=ours + left_s)
    assert ImageRequest.from_dict(request.to_dict(ours), theirs).deadline - theirs == pytest.approx(left_s, abs=1e-6)


def test_a_request_of_an_obsolete_form_is_refused() -> None:
    request = ImageRequest("a", "a red circle", 1, ImageSize(64, 64), 1e9).to_dict(now=0.0)
    with pytest.raises(TypeError):
        ImageRequest.from_dict(request | {"resume_step": 5}, now=0.0)
    with pytest.raises(TypeError, match="left_s"):
        ImageRequest.from_dict({name: it for name, it in request.items() if name != "left_s"}, now=0.0)


def test_a_lookup_is_unchanged_after_serialisation_and_finds_a_state_below_a_step() -> None:
    lookup = CacheLookup("p", 0.9, "e", Resume("ten", 10), ((5, "five"), (10, "ten")), capture=True, prompt_class=2)
    assert CacheLookup.from_dict(lookup.to_dict()) == lookup
    assert [lookup.at(k) for k in (4, 5, 9, 10)] == [None, Resume("five", 5), Resume("five", 5), Resume("ten", 10)]
    assert (lookup.steps_left(50), lookup.saved(50)) == (40, 0.2)
    assert json.dumps(lookup.to_dict())


@given(st.integers(1, 100), st.integers(1, 100))
def test_latency_does_not_decrease_with_the_batch_size(a: int, b: int) -> None:
    profile = LatencyProfile((1, 2, 4, 8), (1.0, 1.5, 2.5, 4.0))
    assert profile.at(min(a, b)) <= profile.at(max(a, b))


@given(st.floats(0, 1), st.floats(0, 1))
def test_deferral_does_not_decrease_with_the_threshold(a: float, b: float) -> None:
    curve = DeferralCurve((0.0, 0.5, 1.0), (0.0, 0.2, 1.0))
    assert curve.at(min(a, b)) <= curve.at(max(a, b))


@pytest.mark.parametrize(("given", "size"), [(64, (64, 64)), ("1152x896", (1152, 896)), ("1x2", (1, 2))])
def test_a_size_is_a_side_or_width_and_height(given: int | str, size: tuple[int, int]) -> None:
    assert ImageSize.of(given) == size
    assert ImageSize.of(str(ImageSize.of(given))) == size


@pytest.mark.parametrize(
    "given", ["", "64", "64X64", "64×64", "-64x64", "64x", "64x64x3", " 64x64", "6e1x64", "999999x1"]
)
def test_anything_else_is_no_size(given: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write WIDTHxHEIGHT"):
        ImageSize.of(given)

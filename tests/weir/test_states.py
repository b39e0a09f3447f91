"""A state survives serialization, and damaged bytes are refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from weir.core import ImageRequest, ImageSize
from weir.errors import StateRefused
from weir.states import State, capture_steps, state_key
from workers.engine.state_memory import InMemoryStates

STATE = State(np.arange(16, dtype=np.float16).reshape(4, 2, 2), 10, 50, "DDIM-v_prediction-00", "heavy-00")


def test_a_state_is_read_back_unchanged_from_its_bytes() -> None:
    again = State.from_bytes(STATE.to_bytes())
    assert np.array_equal(again.latent, STATE.latent)
    assert again.latent.dtype == np.float16
    assert (again.step, again.steps, again.sampler, again.model) == (10, 50, STATE.sampler, STATE.model)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"nonsense", STATE.to_bytes()[:60], STATE.to_bytes()[:-1], save({"latent": STATE.latent}), save({})],
    ids=["nothing", "nonsense", "half a header", "a byte short", "no metadata", "no latent"],
)
def test_damaged_bytes_are_refused(damaged: bytes) -> None:
    with pytest.raises(StateRefused, match="not a stored state"):
        State.from_bytes(damaged)


@pytest.mark.parametrize(
    ("steps", "captured"), [(50, (5, 10, 15, 20, 25)), (25, (2, 5, 8, 10, 12)), (4, (1, 2)), (1, ())]
)
def test_every_run_is_captured_at_the_same_shares(steps: int, captured: tuple[int, ...]) -> None:
    assert capture_steps(steps) == captured


def test_states_are_found_by_request_and_the_oldest_leave_first() -> None:
    store = InMemoryStates(limit=2)
    for name in ("a", "b", "c"):
        store.put(ImageRequest(name, "a red circle", 1, ImageSize(64, 64), deadline=1.0, capture="p"), [STATE])
    assert store.get(state_key("p", "a", 10)) is None
    assert store.get(state_key("p", "c", 10)) is STATE
    assert store.get(state_key("p", "c", 5)) is None

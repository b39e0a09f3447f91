"""A trace and its transforms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.rate_curve import RateCurve
from traces.trace import Arrival, Trace
from weir.errors import ConfigError

arrivals = st.lists(st.floats(0, 300, allow_nan=False), min_size=1, max_size=60)
traces = arrivals.map(lambda times: Trace.of([Arrival(t, f"prompt {i}", i) for i, t in enumerate(times)]))
factors = st.floats(0.05, 8)

invariant = settings(max_examples=40)


def ascend(trace: Trace) -> bool:
    times = np.asarray(trace.arrivals_s)
    return bool(np.all(np.diff(times) >= 0) and np.all(times >= 0) and np.all(times <= trace.duration_s))


@invariant
@given(arrivals)
def test_arrivals_are_sorted_with_their_prompts(times: list[float]) -> None:
    trace = Trace.of([Arrival(t, str(t), None) for t in times])
    assert ascend(trace)
    assert [float(p) for p in trace.prompts] == list(trace.arrivals_s)


@invariant
@given(traces, factors, st.integers(0, 5), st.floats(0.3, 3))
def test_after_every_transform_arrivals_ascend_within_the_duration(
    trace: Trace, factor: float, seed: int, cv: float
) -> None:
    for changed in (
        trace.scale_rate(factor),
        trace.scale_speed(factor),
        trace.resample(seed, cv),
        trace.clip(20 * factor),
    ):
        assert ascend(changed)
        assert len(changed.seeds) == len(changed.prompts) == len(changed)


@invariant
@given(traces, factors)
def test_scaling_the_rate_multiplies_the_requests_and_keeps_the_duration(trace: Trace, factor: float) -> None:
    scaled = trace.scale_rate(factor)
    busiest = max(np.histogram(trace.arrivals_s, np.arange(0, trace.duration_s + 10, 5))[0])
    assert scaled.duration_s == trace.duration_s
    assert abs(len(scaled) - factor * len(trace)) <= busiest * max(1, factor)


@invariant
@given(traces, st.integers(1, 5))
def test_an_integer_factor_multiplies_the_number_of_requests_exactly(trace: Trace, factor: int) -> None:
    assert len(trace.scale_rate(factor)) == factor * len(trace)


def test_scaling_the_rate_keeps_the_shape_of_the_demand_and_the_order_of_prompts() -> None:
    rng = np.random.default_rng(0)
    times = np.concatenate([rng.uniform(0, 50, 50), rng.uniform(50, 100, 500)])
    trace = Trace.of([Arrival(float(t), "", i) for i, t in enumerate(np.sort(times))], 100)
    for factor in (0.4, 2.5):
        scaled = trace.scale_rate(factor)
        calm = sum(t < 50 for t in scaled.arrivals_s)
        assert calm == pytest.approx(50 * factor, abs=15)
        assert len(scaled) == pytest.approx(550 * factor, abs=15)
        assert list(scaled.seeds) == [i % 550 for i in range(len(scaled))]


@invariant
@given(traces, factors)
def test_scaling_the_speed_keeps_every_request_and_divides_every_time(trace: Trace, factor: float) -> None:
    faster = trace.scale_speed(factor)
    assert faster.prompts == trace.prompts
    assert faster.duration_s == trace.duration_s / factor
    assert faster.arrivals_s == tuple(t / factor for t in trace.arrivals_s)


def test_clipping_keeps_only_arrivals_before_the_end() -> None:
    trace = Trace.of([Arrival(t, str(t), None) for t in (0.0, 1.0, 2.0)])
    assert trace.clip(2).prompts == ("0.0", "1.0", "2.0")  # the end of the trace itself
    assert trace.clip(1).prompts == ("0.0",)
    assert trace.clip(1).duration_s == 1
    assert trace.clip(99) == trace


@pytest.mark.parametrize("cv", [None, 0.3, 3.0], ids=["poisson", "regular", "bursty"])
def test_resampling_keeps_the_expected_number_of_requests(cv: float | None) -> None:
    trace = Trace.of([Arrival(t / 4, "", None) for t in range(400)], 100)
    counts = [len(trace.resample(seed, cv)) for seed in range(300)]
    deviation = 20 * (cv or 1)  # of one count, about cv * sqrt(400)
    assert np.mean(counts) == pytest.approx(400, abs=4 * deviation / np.sqrt(300))


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_the_gaps_of_resampled_arrivals_have_the_given_coefficient_of_variation(cv: float) -> None:
    gaps = np.diff(RateCurve((0, 1000), (20,)).sample_arrivals(1, cv))
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_resampling_is_deterministic_for_each_seed() -> None:
    trace = Trace.of([Arrival(float(t), "", None) for t in range(100)])
    assert trace.resample(1) == trace.resample(1)
    assert trace.resample(1) != trace.resample(2)


def test_no_arrival_is_sampled_where_the_rate_is_zero() -> None:
    arrivals_s = RateCurve((0, 10, 20, 30), (3, 0, 3)).sample_arrivals(0)
    assert len(arrivals_s) > 20
    assert not np.any((arrivals_s > 10) & (arrivals_s < 20))


@invariant
@given(traces)
def test_the_rate_curve_expects_the_traces_number_of_requests(trace: Trace) -> None:
    assert trace.rate_curve().expected == pytest.approx(len(trace))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda t: t.scale_rate(0), "factor is 0"),
        (lambda t: t.scale_speed(float("nan")), "factor is nan"),
        (lambda t: t.clip(-1), "duration_s is -1"),
        (lambda t: t.resample(0, cv=0), "cv is 0"),
        (lambda t: t.rate_curve(0), "window_s is 0"),
    ],
)
def test_a_number_out_of_range_is_named(change: object, names: str) -> None:
    trace = Trace.of([Arrival(1.0, "a red circle", None)])
    with pytest.raises(ConfigError, match=names):
        change(trace)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"arrivals_s": (2.0, 1.0), "prompts": ("a", "b")}, "ascending"),
        ({"arrivals_s": (float("inf"),), "prompts": ("a",)}, "finite"),
        ({"arrivals_s": (1.0,), "prompts": ()}, "1 arrivals but 0 prompts"),
        ({"arrivals_s": (1.0,), "prompts": ("a",), "seeds": (1, 2)}, "2 seeds"),
        ({"arrivals_s": (9.0,), "prompts": ("a",), "duration_s": 5.0}, "after the end"),
    ],
)
def test_an_inconsistent_trace_is_refused(fields: dict, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        Trace(**{"duration_s": 10.0, **fields})


def test_removing_seeds_keeps_the_requests() -> None:
    trace = Trace.of([Arrival(0.5, "a", 7), Arrival(1.0, "b", 8)])
    assert list(trace.unseeded()) == [Arrival(0.5, "a", None), Arrival(1.0, "b", None)]


@pytest.mark.parametrize("factor", [1e9, 1e300])
def test_a_rate_that_gives_too_many_requests_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="requests are too many for one trace; give a rate for at most 10000000"):
        Trace.of([Arrival(1.0, "a", None)] * 20).scale_rate(factor)

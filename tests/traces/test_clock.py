"""Unix times in any unit and column are recognised by their magnitude and counted from the first one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.clock import UNITS, seconds
from traces.loader import load_trace
from traces.trace import Arrival, Trace
from weir.errors import ConfigError

START_S = 1_714_564_801
OFFSETS_S = (0.0, 0.25, 2.0, 61.5)
FORMS = {
    "timestamp": ("timestamp,prompt", "a red circle"),
    "arrival_s": ("arrival_s,prompt", "a red circle"),
    "offset_ms": ("offset_ms,prompt_id", "7"),
    "created_at": ("created_at,query", "a red circle"),
    "timestamp_us": ("timestamp_us,text", "a red circle"),
}


def trace(tmp_path: Path, header: str, times: list[str], rest: str = "a red circle", end: str = ",") -> Trace:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([header, *(f"{time}{end}{rest}" for time in times)]) + "\n")
    return load_trace(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unit", UNITS)
def test_unix_time_in_every_unit_and_column_is_counted_from_the_first_request(
    tmp_path: Path, form: str, unit: str
) -> None:
    header, rest = FORMS[form]
    times = [str((START_S + Decimal(offset)) * UNITS[unit]) for offset in OFFSETS_S]
    loaded = trace(tmp_path, header, times, rest)
    assert loaded.arrivals_s == OFFSETS_S
    assert loaded.duration_s == 62


@given(
    start_s=st.integers(946_684_800, 4_000_000_000),
    gaps_ns=st.lists(st.integers(0, 10**9), max_size=20),
    unit=st.sampled_from(list(UNITS)),
)
def test_unix_times_keep_all_their_digits(start_s: int, gaps_ns: list[int], unit: str) -> None:
    offsets = [0]
    for gap in gaps_ns:
        offsets.append(offsets[-1] + gap)
    times = [Decimal(start_s * 10**9 + offset) / (10**9 // UNITS[unit]) for offset in offsets]
    assert seconds(times, "seconds") == pytest.approx([offset / 1e9 for offset in offsets], rel=0, abs=1e-12)


@pytest.mark.parametrize("times", [["1.7145648e9", "1714564802"], ["1714564800000", "1714564802000.0"]])
def test_numbers_in_the_formats_of_spreadsheets_are_read(tmp_path: Path, times: list[str]) -> None:
    assert trace(tmp_path, "timestamp,prompt", times).arrivals_s == (0.0, 2.0)


@pytest.mark.parametrize(
    ("header", "times", "arrivals_s"),
    [
        ("arrival_s,prompt", ["1.5", "600"], (1.5, 600.0)),
        ("offset_ms,prompt_id", ["1500", "600000"], (1.5, 600.0)),
        ("timestamp,prompt", ["10", "12.5"], (0.0, 2.5)),
        ("timestamp_ms,prompt", ["10", "12500"], (0.0, 12.49)),
        ("time_us,prompt", ["0", "2500000"], (0.0, 2.5)),
        ("time_ns,prompt", ["0", "600000000000"], (0.0, 600.0)),
        ("offset_ms,prompt_id", ["0", "1000000000"], (0.0, 1_000_000.0)),
    ],
)
def test_times_since_the_start_are_in_the_unit_of_the_columns_name(
    tmp_path: Path, header: str, times: list[str], arrivals_s: tuple[float, ...]
) -> None:
    assert trace(tmp_path, header, times, "7").arrivals_s == arrivals_s


@pytest.mark.parametrize(
    ("header", "times", "message"),
    [
        ("timestamp,prompt", ["1714564801", "1714564802000"], "line 3, .*: 1714564802000 is unix time in milliseconds"),
        ("timestamp,prompt", ["0", "1714564802"], "line 3, .*: 1714564802 is unix time in seconds, and .* begin at 0"),
        ("arrival_s,prompt", ["0", "600000000000"], "line 3, .*: .* days as seconds.* timestamp_ns"),
        ("timestamp,prompt", ["1714564801", "5000000000"], "line 3, .*: 5000000000 is not a unix time"),
        ("timestamp,prompt", ["1714564801", "2026-05-01"], "line 3, .*: '2026-05-01' is not a number"),
        ("timestamp,prompt", ["2026-05-01", "1714564801"], "line 3, .*: '1714564801' is not a time"),
    ],
)
def test_two_clocks_in_one_column_are_an_error(tmp_path: Path, header: str, times: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trace(tmp_path, header, times)


@pytest.mark.parametrize("unit", UNITS)
def test_a_trace_with_unix_times_can_be_scaled_and_resampled(tmp_path: Path, unit: str) -> None:
    times = [str((START_S + offset) * UNITS[unit]) for offset in range(0, 100, 5)]
    loaded = trace(tmp_path, "arrival_s,prompt", times)
    assert len(loaded.scale_rate(2)) == pytest.approx(2 * len(loaded), abs=1)
    assert len(loaded.scale_rate(0.5).resample(1)) > 0


def test_a_rate_curve_may_begin_at_a_unix_time(tmp_path: Path) -> None:
    assert trace(tmp_path, "t_s,rate", ["1714564800000", "1714564860000"], "3").duration_s == 120


def test_a_trace_of_many_years_is_scaled_in_bounded_memory() -> None:
    years = Trace.of([Arrival(0.0, "a", None), Arrival(50 * 365 * 86_400.0, "b", None)])
    assert 3 <= len(years.scale_rate(2)) <= 4
    assert len(years.rate_curve().rates_rps) <= 600_001


@pytest.mark.parametrize(
    ("cell", "seed"),
    [("4294967296", 2**32), ("18446744073709551615", 2**64 - 1), ("7.0", 7), ("1e3", 1000), ("-1", None), ("", None)],
)
def test_large_and_decimal_seeds_are_read_exactly(tmp_path: Path, cell: str, seed: int | None) -> None:
    assert [a.seed for a in trace(tmp_path, "seed,prompt,arrival_s", [cell], "a red circle,1")] == [seed]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_spreadsheets_are_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = tmp_path / "trace.csv"
    rows = ["timestamp,prompt", "1714564801,ein größer Kreis", "1714564803,a star"]
    path.write_bytes("\r\n".join(row.replace(",", delimiter) for row in rows).encode(encoding))
    assert list(load_trace(path)) == [Arrival(0.0, "ein größer Kreis", None), Arrival(2.0, "a star", None)]

"""Trace files in every format are read, and errors name their place and the remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from traces.loader import load_trace
from traces.prompts import prompt_by_id
from traces.trace import Arrival, Trace
from weir.core import ImageSize
from weir.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str | bytes, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_weirs_own_format_is_read_and_sorted(file) -> None:
    trace = load_trace(file('arrival_s,prompt,seed\n2.5,"a star, a ring and a cross",7\n0.5,a red circle,\n'))
    assert list(trace) == [
        Arrival(0.5, "a red circle", None),
        Arrival(2.5, "a star, a ring and a cross", 7),
    ]
    assert trace.duration_s == 3


def test_a_trace_may_name_sizes(file) -> None:
    trace = load_trace(file("arrival_s,prompt,size\n1,a,96x64\n2,b,\n3,c,auto\n"))
    assert trace.sizes == ((96, 64), None, None)
    assert load_trace(file("arrival_s,prompt,size\n1,a,\n")).sizes == ()


def test_a_saved_trace_is_loaded_unchanged(tmp_path: Path) -> None:
    wide = ImageSize(96, 64)
    trace = Trace.of([Arrival(0.125, 'a "red" circle, maybe', 1, wide), Arrival(3.0, "zwei\nZeilen", None)])
    trace.save(tmp_path / "t.csv")
    assert load_trace(tmp_path / "t.csv") == trace


def test_diffserves_format_is_recognised_without_a_header_and_sorted(file) -> None:
    trace = load_trace(file("900.0,3\n368.0,1236\n1200.5,3\n"))
    assert trace.arrivals_s == (0.368, 0.9, 1.2005)
    assert trace.prompts == (prompt_by_id(1236), prompt_by_id(3), prompt_by_id(3))


def test_diffserves_ids_are_lines_of_a_prompts_file_counted_from_zero(file) -> None:
    prompts = file("a dog\na cat\n", "prompts.txt")
    assert load_trace(file("offset_ms,prompt_id\n5,1\n2,0\n"), prompts=prompts).prompts == ("a dog", "a cat")


def test_a_rate_curve_gives_arrivals_at_its_rate_and_equal_ones_for_equal_seeds(file) -> None:
    path = file("t_s,rate\n0,2\n100,20\n")
    trace = load_trace(path, seed=1)
    assert trace.duration_s == 200
    assert sum(t < 100 for t in trace.arrivals_s) == pytest.approx(200, abs=60)
    assert sum(t >= 100 for t in trace.arrivals_s) == pytest.approx(2000, abs=180)
    assert trace == load_trace(path, seed=1) != load_trace(path, seed=2)


@pytest.mark.parametrize(
    "lines",
    [
        "2024-05-01T12:00:03Z,b\n2024-05-01 12:00:01+00:00,a\n",
        "2024-05-01T14:00:03+02:00,b\n2024-05-01T12:00:01,a\n",
        "1714564803,b\n1714564801.0,a\n",
        "1714564803000,b\n1714564801000,a\n",
    ],
    ids=["iso", "zones", "unix seconds", "unix milliseconds"],
)
def test_a_timestamped_log_starts_with_its_first_request(file, lines: str) -> None:
    trace = load_trace(file("user,timestamp,prompt\n" + "".join(f"u,{line}\n" for line in lines.splitlines())))
    assert list(trace) == [Arrival(0, "a", None), Arrival(2, "b", None)]


def test_byte_order_marks_blank_lines_and_capitals_in_the_header_are_accepted(file) -> None:
    assert load_trace(file("\ufeffArrival_s,Prompt\n\n1,a\n\n")).arrivals_s == (1.0,)


OWN, DIFFSERVE, CURVE, LOG = "arrival_s,prompt\n", "offset_ms,prompt_id\n", "t_s,rate\n", "timestamp,prompt\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; a trace is a CSV file: arrival_s,prompt"),
        ("a,b,c\n1,2,3\n", "line 1: unknown format with the columns a, b, c; known: arrival_s,prompt"),
        ("t_s,qps\n0,1\n9,2\n", "line 1: a rate curve needs a column rate; rename one of t_s, qps"),
        (OWN, "no line follows the header"),
        ("arrival_s,prompt,prompt\n1,a,b\n", "line 1, column prompt: the header names it twice"),
        (OWN + "1,a\n2,a dog, a cat\n", "line 3: 3 cells where 2 are due .* double quotes"),
        (OWN + "1,a\nsoon,b\n", "line 3, column arrival_s: 'soon' is not a number; write seconds"),
        (OWN + "-1,a\n", "line 2, column arrival_s: -1 is out of range"),
        (OWN + "nan,a\n", "line 2, column arrival_s: nan is out of range"),
        (OWN + "inf,a\n", "line 2, column arrival_s: inf is out of range"),
        (OWN + "1, \n", "line 2, column prompt: the prompt is empty; fill it in"),
        ("arrival_s,prompt,size\n1,a,96\n", "line 2, column size: '96' is not a size; write WIDTHxHEIGHT"),
        ("arrival_s,prompt,seed\n1,a,-4\n", "line 2, column seed: '-4' is not a seed; write a whole number"),
        (OWN + '1,"a\n', "line 2: unexpected end of data; put text"),
        (b"arrival_s,prompt\n1,\xff\n", "byte 19 is not UTF-8; save the file as UTF-8"),
        (DIFFSERVE + "1,1.5\n", "line 2, column prompt_id: 1.5 is not a whole number"),
        ("1,1\nx,2\n", "line 2, column offset_ms: 'x' is not a number; write milliseconds"),
        (CURVE + "0,1\n0,2\n", "line 3, column t_s: 0 does not come after 0; sort the lines"),
        (CURVE + "5,1\n9,2\n", "line 2, column t_s: the curve starts at 5; it must start at 0"),
        (CURVE + "0,1\n", "one line gives no duration; add a line"),
        (CURVE + "0,0\n9,0\n", "column rate: the curve gives no request"),
        (CURVE + "0,-2\n9,0\n", "line 2, column rate: -2 is out of range"),
        (LOG + "noon,a\n", "line 2, column timestamp: 'noon' is not a time; write ISO 8601"),
        (LOG + "2024-05-01,\n", "line 2, column prompt: the prompt is empty"),
        (
            LOG + "45413.5,a\n45413.6,b\n",
            "45413.5 looks like a spreadsheet's date as a number of days; format .* hh:mm",
        ),
        (OWN + "0,a\n1e300,b\n", "line 3, column arrival_s: 1e300 is out of range"),
        (OWN + "1e999999999,a\n", "line 2, column arrival_s: 1e999999999 is out of range"),
        ("arrival_s,prompt,seed\n1,a,1e999999999\n", "line 2, column seed: '1e999999999' is not a seed"),
        (CURVE + "0,1e12\n60,1e12\n", "column rate: 1.2e\\+14 requests are too many .* at most 10000000"),
        (CURVE + "0,1\n1e7,1\n", "column rate: 2e\\+07 requests are too many"),
        (OWN + "0," + "x" * 200_000 + "\n", "line 2: field larger than field limit .* close each"),
    ],
)
def test_an_error_names_file_line_column_and_remedy(file, text: str, message: str) -> None:
    path = file(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_trace(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"arrival_s,prompt\n0,a\n"), "packed with gzip; unpack it"),
        (b"PK\x03\x04xl/workbook.xml", "a spreadsheet or a zip file; save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet; save it as CSV"),
        (b"PAR1\x15\x04", "a Parquet file; convert it to CSV"),
        (b'{"arrival_s": 0, "prompt": "a"}\n', "JSON; write a line of CSV for each request"),
        (b'[{"arrival_s": 0, "prompt": "a"}]', "JSON; write a line of CSV for each request"),
    ],
    ids=["gzip", "xlsx", "xls", "parquet", "jsonl", "json"],
)
def test_a_file_that_is_not_csv_is_called_what_it_is(file, content: bytes, what: str) -> None:
    with pytest.raises(ConfigError, match=f"is {what}"):
        load_trace(file(content))


@pytest.mark.parametrize(
    "text",
    [
        "arrival_s;prompt\n0,5;a\n1,5;b\n",
        "sep=;\narrival_s;prompt\n0,5;a\n1,5;b\n",
        "arrival_s\tprompt\n0,5\ta\n1,5\tb\n",
    ],
)
def test_numbers_of_spreadsheets_may_have_a_decimal_comma(file, text: str) -> None:
    assert [it.arrival_s for it in load_trace(file(text))] == [0.5, 1.5]


def test_ids_without_a_header_may_have_a_decimal_comma(file) -> None:
    assert [it.arrival_s for it in load_trace(file("500,5;3\n1500,5;4\n"))] == [0.5005, 1.5005]


def test_seconds_of_a_day_are_no_dates(file) -> None:
    trace = load_trace(file("timestamp_s,prompt\n45413.5,a\n45415.5,b\n"))
    assert [it.arrival_s for it in trace] == [0.0, 2.0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: there is no such file"):
        load_trace(tmp_path / "none.csv")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_trace(tmp_path)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a dog\n", r"trace.csv: line 1, column prompt_id: 7 is out of range; .* holds prompts 0 to 0"),
        ("a dog\n\na cat\n", r"prompts.txt: line 2: the prompt is empty"),
        ("", r"prompts.txt: the file is empty"),
    ],
)
def test_an_error_in_the_prompts_file_names_file_line_and_remedy(file, prompts: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_trace(file("1,7\n"), prompts=file(prompts, "prompts.txt"))


def test_a_prompts_file_for_another_format_is_refused(file) -> None:
    with pytest.raises(ConfigError, match="no column prompt_id"):
        load_trace(file(OWN + "1,a\n"), prompts=file("a dog\n", "prompts.txt"))

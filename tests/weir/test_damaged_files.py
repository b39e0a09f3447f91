"""Damaged files are read or refused by an error of the project; ``make fuzz-files`` reads many more."""

from __future__ import annotations

import re

import pytest

from tests.fuzz_files import KINDS, fuzz, place, read_damaged
from weir.errors import ConfigError


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_file_is_read(kind: str) -> None:
    with place() as folder:
        path = folder / KINDS[kind].name
        path.write_bytes(KINDS[kind].valid())
        KINDS[kind].read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused(kind: str) -> None:
    fuzz(kind, 10, seed=0)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("a family", b"../../models/weir-tiny/pipeline"),
        ("a family", b"../../models/weir-tiny/adapters/noir.safetensors"),
        ("a service", b"../families/weir-tiny.yaml"),
        ("a service", b"../profiles/weir-tiny-cpu.json"),
        ("a service", b"../profiles/weir-tiny-cache.json"),
    ],
)
@pytest.mark.parametrize("wrong", [b"../" + b"a" * 5000, b"/" + b"a/" * 4000, b'"a\\0b"', b'"../a\\0b"', b"a" * 5000])
def test_a_path_that_no_system_takes_is_refused_or_a_name_of_the_hub(kind: str, path: bytes, wrong: bytes) -> None:
    content = KINDS[kind].valid()
    assert path in content
    with place() as folder:
        read_damaged(KINDS[kind], content.replace(path, wrong), folder)


@pytest.mark.parametrize("kind", [name for name in KINDS if KINDS[name].name.endswith((".json", ".yaml"))])
@pytest.mark.parametrize("content", [b"[" * 10_000, b'{"a":' * 10_000, b"{a: " * 10_000, b"- {name:" + b"[" * 10_000])
def test_a_file_that_is_nested_too_deeply_is_refused_at_once(kind: str, content: bytes) -> None:
    with place() as folder:
        read_damaged(KINDS[kind], content, folder)


@pytest.mark.parametrize("kind", [name for name in KINDS if KINDS[name].name.endswith(".json")])
@pytest.mark.parametrize("number", [b"9" * 400, b"-" + b"9" * 400], ids=["large", "small"])
def test_a_number_that_no_float_holds_is_refused_wherever_it_stands(kind: str, number: bytes) -> None:
    content = KINDS[kind].valid()
    places = [it.span() for it in re.finditer(rb"(?<=[\s\[:,])\d+(?=[\s\],}])", content)]
    with place() as folder:
        for start, end in places[:40]:
            read_damaged(KINDS[kind], content[:start] + number + content[end:], folder)


@pytest.mark.parametrize("kind", [name for name in KINDS if KINDS[name].name.endswith(".csv")])
def test_a_cell_that_is_too_long_for_a_reader_is_refused(kind: str) -> None:
    with place() as folder:
        read_damaged(KINDS[kind], b"a" * 200_000 + b"\n" + KINDS[kind].valid(), folder)
        read_damaged(KINDS[kind], KINDS[kind].valid() + b"a" * 200_000, folder)


def test_outcomes_without_an_index_are_refused_by_line_and_column() -> None:
    kind = KINDS["outcomes of a replay"]
    header, row, *_ = kind.valid().splitlines()
    with place() as folder:
        path = folder / kind.name
        path.write_bytes(b"\n".join([header, row, row.partition(b",")[1] + row.partition(b",")[2], b""]))
        with pytest.raises(ConfigError, match="line 3, column index"):
            kind.read(path)


@pytest.mark.parametrize("kind", ["a state", "a record of the cache"])
def test_a_header_that_is_nested_too_deeply_is_refused(kind: str) -> None:
    with place() as folder:
        read_damaged(KINDS[kind], (100_000).to_bytes(8, "little") + b"[" * 100_000, folder)
        read_damaged(KINDS[kind], b"[" * 100_000, folder)


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"Infinity", b"NaN", b"9" * 5000])
def test_a_cache_profile_with_a_step_that_is_no_number_is_refused(number: bytes) -> None:
    kind = KINDS["a cache profile"]
    with place() as folder:
        path = folder / kind.name
        path.write_bytes(kind.valid().replace(b"20\n", number + b"\n", 1))
        with pytest.raises(ConfigError, match="not a cache profile"):
            kind.read(path)


def test_the_fuzzer_finds_a_reader_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: object) -> None:
        raise KeyError("a")

    monkeypatch.setitem(KINDS, "broken", KINDS["keys"].__class__("a.yaml", KINDS["keys"].valid, read))
    with pytest.raises(KeyError):
        fuzz("broken", 10, seed=0)

"""Damaged files are read or refused by an error of the project; ``make fuzz-files`` reads many more."""

from __future__ import annotations

import pytest

from tests.fuzz_files import KINDS, fuzz, place, read_damaged


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


def test_the_fuzzer_finds_a_reader_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: object) -> None:
        raise KeyError("a")

    monkeypatch.setitem(KINDS, "broken", KINDS["keys"].__class__("a.yaml", KINDS["keys"].valid, read))
    with pytest.raises(KeyError):
        fuzz("broken", 10, seed=0)

"""Every test in docs/guarantees.md exists, and so does the code that each mutation changes."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, Mutation

PAGE = Path("docs/guarantees.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def defined(path: str) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(Path(path).read_text()).body if isinstance(node, kinds)}


def rows() -> list[str]:
    return [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d", line)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[2].strip()[:60])
def test_every_guarantee_names_existing_tests(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5
    assert all(cells)
    named = NAMED.findall(cells[3])
    assert named
    assert [f"{path}::{name}" for path, name in named if name not in defined(path)] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_code_of_every_mutation_exists_once_and_its_test_is_on_the_page(mutation: Mutation) -> None:
    assert Path(mutation.file).read_text().count(mutation.mechanism) == 1
    path, _, name = mutation.test.partition("::")
    assert (path, name) in NAMED.findall(PAGE.read_text())

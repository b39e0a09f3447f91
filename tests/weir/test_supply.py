"""Requirements are pinned and hashed, and a failed audit is reported as a failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.audit import CLEAN, UNKNOWN, VULNERABLE, verdict

PIN = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==([^\s;]+)")
RUNTIME, DEVELOPMENT, INSTALLER = (Path(f"requirements{it}.txt") for it in ("", "-dev", "-uv"))


def pins(path: Path) -> dict[str, str]:
    """Name → version, with names normalised as in pip."""
    found = (PIN.match(line) for line in path.read_text().splitlines())
    return {re.sub(r"[-_.]+", "-", it[1]).lower(): it[2] for it in found if it}


@pytest.mark.parametrize("path", [RUNTIME, DEVELOPMENT, INSTALLER], ids=str)
def test_every_requirement_is_pinned(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "-r"))]
    assert len(pins(path)) == len(lines)


@pytest.mark.parametrize("path", [RUNTIME, DEVELOPMENT, INSTALLER], ids=str)
def test_the_lock_has_every_pin_and_a_hash_for_every_entry(path: Path) -> None:
    lock = path.with_suffix(".lock")
    locked = pins(lock)
    chosen = {name: version for name, version in pins(path).items() if name != "torch"}
    assert chosen.items() <= locked.items(), "write the lock again: `make lock`, or `python -m tests.lock` in its venv"
    assert "torch" not in locked
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.read_text()):
        if PIN.match(block):
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]


def test_both_locks_have_the_same_versions() -> None:
    assert pins(RUNTIME.with_suffix(".lock")).items() <= pins(DEVELOPMENT.with_suffix(".lock")).items()


def test_no_file_names_a_registry() -> None:
    for path in (*Path().glob("requirements*"), Path("Makefile")):
        assert not re.search(r"://|--(extra-)?index|--find-links", path.read_text()), path


SAFE = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "message"),
    [
        ([SAFE], CLEAN, "1 of 1 packages audited, 0 advisories"),
        ([SAFE, FLAWED], VULNERABLE, "b 2: CVE-1, fixed in 3"),
        ([SAFE, SKIPPED], UNKNOWN, "not audited: c"),
        ([FLAWED, SKIPPED], VULNERABLE, "not audited: c"),
        ([SKIPPED, SKIPPED], UNKNOWN, "NOTHING WAS AUDITED"),
        ([], UNKNOWN, "NOTHING WAS AUDITED"),
    ],
)
def test_an_audit_that_could_not_run_reports_a_failure(packages, code, message) -> None:
    found, words = verdict({"dependencies": packages})
    assert found == code
    assert message in words

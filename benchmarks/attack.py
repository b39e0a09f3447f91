"""Attacks a service in every known way, and says of each attack whether the service was right.

    python -m benchmarks.attack [--neighbours SECONDS --runs N]

Starts a service of emulated workers with two API keys. What cannot be seen from outside (a clock that is set, secrets
in complaints, versions of plans) is what the named tests show. The exit code is 1 when anything was wrong.

``--neighbours`` measures instead what a client notices of a hostile one (``benchmarks/neighbours.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import command, served
from testing.attacks import LONG, QUICK, RAW, Target, Verdict, raw_bytes, write_service
from weir.assets import ROOT

#: What is seen in one process only → the tests that attack it.
TESTS = {
    "a clock set back by an hour": (
        "tests/weir/test_clocks.py",
        "tests/load_balancer/admission/test_clock.py",
        "tests/load_balancer/http/test_jobs.py::"
        "test_an_answer_is_kept_as_long_as_promised_when_the_wall_clock_is_set_back",
    ),
    "secrets in Redis URLs and under mistyped keys": ("tests/weir/test_secrecy.py",),
    "plans of version 10^30, true and 1.5": (
        "tests/weir/test_plan.py",
        "tests/load_balancer/runner/test_balancer.py::test_a_wrong_or_older_plan_changes_nothing",
    ),
    "a judge that answers NaN": (
        "tests/load_balancer/runner/test_balancer.py::test_a_judge_that_answers_nan_defers_every_image",
    ),
    "a full disk": (
        "tests/weir/test_logs.py::test_while_the_disk_is_full_records_are_lost_which_is_said_once",
        "tests/weir/test_files.py::test_a_full_disk_is_reported_and_leaves_the_old_file",
    ),
    "formulas, and paths out of a folder, in files": (
        "tests/traces/test_replay.py::test_no_cell_is_a_formula_to_a_spreadsheet_and_every_text_is_read_as_it_was",
        "tests/traces/test_replay.py::test_a_file_of_outcomes_names_no_image_outside_of_its_folder",
    ),
}


@contextmanager
def attacked(*, heavy_replicas: int = 1, **quota: Any) -> Iterator[Target]:
    """A service under attack; ``quota`` is that of Mallory's key."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, alice, mallory = write_service(folder, heavy_replicas=heavy_replicas, **quota)
        with served(config, folder / "state") as service:
            folders = (Path(service.scratch), folder / "state")
            yield Target(service.url, alice, mallory, folder / "keys.yaml", folders)


async def attack(target: Target) -> list[Verdict]:
    """Runs every attack on a running service, one after the other."""
    found = [await raw_bytes(target, name) for name in RAW]
    for one in (*QUICK.values(), *LONG.values()):
        try:
            found.append(await one(target))
        except Exception as error:  # the service did not even answer
            found.append(Verdict(one.__name__, f"{type(error).__name__}: {error}", False))
    return found


def tested() -> list[Verdict]:
    """Runs the tests of what cannot be seen from outside."""
    found = []
    for name, tests in TESTS.items():
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        summary = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
        found.append(Verdict(name, summary if done.returncode else "its tests pass", done.returncode == 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Attacks a service, and says whether it was right.")
    parser.add_argument("--neighbours", type=float, metavar="SECONDS", help="measure a client beside a hostile one")
    parser.add_argument("--runs", type=int, default=1, help="number of pairs of runs of --neighbours")
    given = parser.parse_args()
    if given.neighbours is not None:
        from benchmarks.neighbours import HEAVY_REPLICAS, QUOTA, compare

        with attacked(heavy_replicas=HEAVY_REPLICAS, **QUOTA) as target:
            right = compare(target, given.neighbours, given.runs)
        sys.exit(not right)
    with attacked() as target:
        found = asyncio.run(attack(target))
    found += tested()
    for it in found:
        sys.stdout.write(f"{it.attack:46}{'right' if it.right else 'WRONG':7}{it.happened}\n")
    sys.exit(not all(it.right for it in found))


if __name__ == "__main__":
    command(main)

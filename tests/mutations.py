"""Switches mechanisms off, one at a time, and expects the test that guards each to fail: ``python -m tests.mutations``.

Works on a copy of the project. Exit code 1 when a test did not notice, or fails with its mechanism on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
#: Large and never changed: linked, not copied.
LINKED = ("models", "docs")


@dataclass(frozen=True, slots=True)
class Mutation:
    """``mechanism`` is text that is in ``file`` once; ``off`` takes its place."""

    what: str
    file: str
    mechanism: str
    off: str
    test: str


MUTATIONS = (
    Mutation(
        "every controller may publish",
        "load_balancer/lease.py",
        'if self._holder not in ("", holder) and now < self._until:',
        "if False:",
        "tests/load_balancer/test_lease.py::test_the_other_one_takes_over_when_the_first_was_silent",
    ),
    Mutation(
        "a plan takes the rest of the configuration down",
        "deploy/serve_config.py",
        'kept = ("proxy_location", "http_options", "grpc_options", "target_capacity")',
        "kept = ()",
        "tests/deploy/test_serve_config.py::test_a_plan_leaves_the_rest_of_what_is_deployed_as_it_is",
    ),
    Mutation(
        "the tags of cached states are not checked",
        "cache/seal.py",
        "if not hmac.compare_digest(tag, _tag(key, head, packed, secret)):",
        "if False:",
        "tests/cache/test_tenants.py::test_another_tenants_state_moved_under_ones_own_key_is_refused",
    ),
    Mutation(
        "all tenants share their states",
        "cache/partition.py",
        'return quote(tenant, safe="") + "|"',
        'return "everybody|"',
        "tests/cache/test_faults.py::test_tenants_never_meet",
    ),
    Mutation(
        "an unknown key is anybody's",
        "load_balancer/callers.py",
        "        if found is None:\n",
        "        found = found or self._anonymous\n        if found is None:\n",
        "tests/load_balancer/test_gate.py::test_without_a_known_key_there_is_nothing_but_the_way_to_get_one",
    ),
    Mutation(
        "a key may have any number of images in flight",
        "load_balancer/quotas.py",
        "if most is not None and use.in_flight + images > most:",
        "if False:",
        "tests/load_balancer/test_quotas.py::test_no_key_ever_gets_more_than_it_may",
    ),
    Mutation(
        "admission does not look at the deadline",
        "load_balancer/admission.py",
        "if finish_at > deadline:",
        "if False:",
        "tests/load_balancer/test_balancer.py::test_more_than_the_deadline_allows_is_refused_before_any_work",
    ),
    Mutation(
        "a light image does not stand in for a heavy one that fails",
        "load_balancer/passage.py",
        "if not fallback:",
        "if True:",
        "tests/load_balancer/test_balancer.py::test_a_heavy_image_that_fails_leaves_the_light_one",
    ),
    Mutation(
        "a replica that says nothing stays in the book",
        "load_balancer/silence.py",
        "if 0 < it.looks < SILENT_LOOKS:",
        "if 0 < it.looks:",
        "tests/load_balancer/test_roster.py::test_who_is_silent_leaves_the_book_after_some_looks_and_the_others_stay",
    ),
    Mutation(
        "a replica that froze is never ended",
        "load_balancer/silence.py",
        "if now - it.since >= self._end_s and not it.ended:",
        "if False:",
        "tests/load_balancer/test_roster.py::test_who_is_not_heard_for_longer_than_a_drain_takes_is_ended_once",
    ),
    Mutation(
        "images wait for a hung replica for ever",
        "load_balancer/roster.py",
        "if not wait.expired():",
        "if False:",
        "tests/load_balancer/test_roster.py::test_images_at_a_hung_replica_are_drawn_by_another",
    ),
)


def copy(to: Path) -> None:
    """The project as it is here, without what tools left."""
    for entry in REPOSITORY.iterdir():
        if entry.name.startswith(".") or entry.name in ("runs", "__pycache__"):
            continue
        if entry.name in LINKED:
            (to / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, to / entry.name, ignore=shutil.ignore_patterns("__pycache__", "work"))
        else:
            shutil.copy(entry, to / entry.name)


def passes(folder: Path, test: str) -> bool:
    """Whether a test passes in a copy of the project."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    unnoticed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        for mutation in MUTATIONS:
            file = folder / mutation.file
            text = file.read_text()
            on = passes(folder, mutation.test)
            file.write_text(text.replace(mutation.mechanism, mutation.off))
            off = passes(folder, mutation.test)
            file.write_text(text)
            verdict = "noticed" if on and not off else "NOT NOTICED" if on else "FAILS ANYWAY"
            unnoticed += verdict != "noticed"
            sys.stdout.write(f"{verdict:<12} {mutation.what}\n{'':12} {mutation.test}\n")
            sys.stdout.flush()
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()

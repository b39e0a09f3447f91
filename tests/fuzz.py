"""Fuzzes the API from its own description with schemathesis: ``python -m tests.fuzz [--examples 200] [--minutes 60]``.

Starts a service of emulated workers and prints schemathesis' summary. ``--minutes`` repeats it with further seeds until
the time is over or a run finds something. Every status, content type and body that comes
back is held against the description: no 5xx from any input, nothing accepted that the description forbids, and nothing
refused that it allows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from deploy.local import down, up
from testing.toy_family import FAMILY, PROFILE

#: A known idempotency key with another request is the one thing that a schema cannot forbid: 422.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]

# Bytes that the description allows for a picture are none.
[[operations]]
include-path = "/v1/images/edits"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "404", "409", "413", "422", "429", "503"]
"""


def fuzz(url: str, examples: int, *, seed: int = 0, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """One run of schemathesis; its exit code is 0 when it found nothing.

    Args:
        examples: most cases for each operation, besides those that cover the description systematically.
    """
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "--max-examples", str(examples), "--seed", str(seed), "--no-shrink"]
    command += ["--phases", "coverage,fuzzing", "--request-timeout", "30", "--no-color"]
    if key is not None:
        command += ["--header", f"Authorization: Bearer {key}"]
    with tempfile.TemporaryDirectory() as folder:  # it leaves files where it runs
        Path(folder, "schemathesis.toml").write_text(CONFIG)
        return subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the API from its own description.")
    parser.add_argument("--examples", type=int, default=200, help="cases for each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="go on with further seeds for this long")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "family.yaml").write_text(yaml.safe_dump(FAMILY))
        (here / "profile.json").write_text(json.dumps(PROFILE))
        fields = {
            "family": "family.yaml",
            "slo_s": 60,
            "plan": {"light_replicas": 2, "heavy_replicas": 1},
            "pool": {"cpus_per_replica": 0.1, "emulate": "profile.json"},
        }
        (here / "fuzz.yaml").write_text(yaml.safe_dump(fields))
        service = up(here / "fuzz.yaml", detach=True, port=0, folder=here / "state")
        assert service is not None
        began, seed = time.monotonic(), given.seed
        try:
            while True:
                found = fuzz(service.url, given.examples, seed=seed)
                sys.stdout.write(f"seed {seed}\n{found.stdout}")
                sys.stdout.flush()
                seed += 1
                if found.returncode or time.monotonic() - began >= 60 * given.minutes:
                    break
        finally:
            down(service.name, folder=here / "state")
    sys.exit(found.returncode)


if __name__ == "__main__":
    main()

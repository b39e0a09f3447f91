"""Writes the lock files from the pins: ``python -m tests.lock [--upgrade]``.

They hold every package that is installed, in every platform's builds, with its hashes; ``--upgrade`` takes the newest
versions of what is not pinned. Torch is not among them, see docs/decisions/2026-11-24-dependency-locks.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNTIME, DEVELOPMENT = "requirements.txt", "requirements-dev.txt"
OPTIONS = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-emit-package", "torch"]


def lock(given: str, *more: str) -> None:
    """Resolves a file of pins into its lock; what the lock holds stays where nothing speaks against it."""
    uv = str(Path(sys.executable).with_name("uv"))
    out = str(Path(given).with_suffix(".lock"))
    subprocess.run([uv, "pip", "compile", "--quiet", *OPTIONS, *more, given, "--output-file", out], check=True)


def main() -> None:
    lock(RUNTIME, *sys.argv[1:])
    lock(DEVELOPMENT, "--constraint", str(Path(RUNTIME).with_suffix(".lock")), *sys.argv[1:])


if __name__ == "__main__":
    main()

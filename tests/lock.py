"""Writes the lock files from the pins, and checks them: ``python -m tests.lock [--upgrade]``, ``… --check``.

They hold every package that is installed, in every platform's builds, with its hashes; ``--upgrade`` takes the newest
versions of what is not pinned. Torch is not among them, see docs/decisions/2026-11-24-dependency-locks.md.

``--check`` asks the registry whether everything in them, and torch, has a built wheel for Linux and each version of
Python that ``make setup`` accepts. It downloads no package.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RUNTIME, DEVELOPMENT, INSTALLER = "requirements.txt", "requirements-dev.txt", "requirements-uv.txt"
OPTIONS = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-emit-package", "torch"]
#: What ``requires-python`` in pyproject.toml allows; the first is what the locks are written for.
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_28"


def _compile(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", *arguments]


def lock(given: str, *more: str) -> None:
    """Resolves a file of pins into its lock; what the lock holds stays where nothing speaks against it."""
    out = str(Path(given).with_suffix(".lock"))
    subprocess.run(_compile(*OPTIONS, *more, given, "--output-file", out), check=True)


def torch_pin(pins: str) -> str:
    """The line of a file of pins that pins torch."""
    (pin,) = (line for line in pins.splitlines() if line.startswith("torch=="))
    return pin


def without_wheels(pinned: str) -> Iterator[tuple[str, str]]:
    """Versions of Python for which something pinned has no built wheel, each with the resolver's reason.

    Args:
        pinned: lines as in a file of requirements, every package with its version and, where it has one, its marker.
    """
    only_wheels = ["--no-deps", "--only-binary", ":all:", "--python-platform", PLATFORM, "-"]
    for version in PYTHONS:
        command = _compile("--python-version", version, *only_wheels)
        done = subprocess.run(command, input=pinned, capture_output=True, text=True, check=False)
        if done.returncode:
            yield version, done.stderr.strip()


def check() -> int:
    """Checks the lock of development, which holds the others; returns an exit code."""
    lines = Path(DEVELOPMENT).with_suffix(".lock").read_text().splitlines()
    packages = [line.rstrip(" \\") for line in lines if line and line[0].isalnum()]
    packages.append(torch_pin(Path(RUNTIME).read_text()))
    missing = dict(without_wheels("\n".join(packages)))
    for version in PYTHONS:
        found = missing.get(version, f"all {len(packages)} packages have a wheel or do not apply")
        sys.stdout.write(f"Python {version}, {PLATFORM}: {found}\n")
    return 1 if missing else 0


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    lock(INSTALLER, *sys.argv[1:])
    lock(RUNTIME, *sys.argv[1:])
    lock(DEVELOPMENT, "--constraint", str(Path(RUNTIME).with_suffix(".lock")), *sys.argv[1:])


if __name__ == "__main__":
    main()

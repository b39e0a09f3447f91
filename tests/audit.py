"""Looks the locked dependencies up in the advisory database: ``python -m tests.audit``. Needs the network, and says so.

Exit codes: 0 nothing known against any of them; 1 something is; 3 not all of them could be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path("requirements-dev.lock")
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """The exit code and the words for a report of ``pip-audit --format json``."""
    packages = report["dependencies"]
    skipped = [it for it in packages if "skip_reason" in it]
    found = [(it, flaw) for it in packages for flaw in it.get("vulns", ())]
    lines = [
        f"{it['name']} {it['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for it, flaw in found
    ]
    if len(skipped) == len(packages):
        lines.append("NOTHING WAS AUDITED: no advisory database could be reached, or it knows none of the packages")
    elif skipped:
        lines.append(f"not audited: {', '.join(sorted(it['name'] for it in skipped))}")
    lines.append(f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} advisories")
    return (VULNERABLE if found else UNKNOWN if skipped or not packages else CLEAN), "\n".join(lines)


def main() -> None:
    command = [str(Path(sys.executable).with_name("pip-audit")), "--requirement", str(LOCK), "--require-hashes"]
    command += ["--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        code, said = verdict(json.loads(done.stdout))
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        code, said = UNKNOWN, f"NOTHING WAS AUDITED: pip-audit did not come to an end: {last}"
    sys.stdout.write(said + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Where the files are that come with the code: the embedded family and its weights, ladders, dashboards, rules.

An installed wheel has them in the same places beside the packages as a checkout has, so that the paths in a service or
a family file, which are relative to it, are right in both. ``pyproject.toml`` lists what goes into the wheel;
``tests/weir/test_wheel.py`` runs one.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

#: The folder of the packages: a checkout, or where a wheel was installed.
ROOT = Path(__file__).resolve().parents[1]

DEPLOY = ROOT / "deploy"
#: The embedded family, its service, and the thresholds of its cache, measured by ``weir cache profile``.
FAMILY = DEPLOY / "families" / "weir-tiny.yaml"
SERVICE = DEPLOY / "configs" / "weir-tiny.yaml"
CACHE_PROFILE = DEPLOY / "profiles" / "weir-tiny-cache.json"
WEIGHTS = ROOT / "models" / "weir-tiny"
LEVEL_HEAD = WEIGHTS / "levels" / "head.safetensors"
#: Ladders that have a name.
LADDERS = DEPLOY / "ladders"
MONITORING = DEPLOY / "monitoring"


def import_path() -> list[str]:
    """What another Python of this environment needs on its path to import the packages; nothing where they are
    installed among its own."""
    return [] if Path(sysconfig.get_path("purelib")).resolve() == ROOT else [str(ROOT)]

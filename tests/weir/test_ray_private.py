"""Private parts of Ray are used in one module only, which matches a message in Ray's source."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from weir.ray_private import started_too_slowly

ROOMS = [path.parent for path in Path().glob("*/__init__.py")]
#: Names of Ray that are private: those with an underscore, and further private ones without.
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._\w+|from ray(\.\w+)*\._\w+|_fetch_replica_results_async|_set_global_client|_get_global_client"
)


def test_private_names_of_ray_are_used_in_one_module_only() -> None:
    assert len(ROOMS) > 10
    strays = [
        f"{path}: {found[0]}"
        for room in ROOMS
        for path in sorted(room.rglob("*.py"))
        if path != Path("weir/ray_private.py")
        for found in PRIVATE.finditer(path.read_text())
    ]
    assert not strays


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_rays_message_of_a_slow_start_is_unchanged() -> None:
    from ray._private.node import Node

    message = "The current node timed out during startup."
    assert message in inspect.getsource(Node.__init__)
    assert started_too_slowly(Exception(message))
    assert not started_too_slowly(RuntimeError("Maybe you called ray.init twice by accident?"))

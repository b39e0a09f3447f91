"""Imports between rooms: a room imports only the rooms that docs/architecture.md allows."""

import ast
from pathlib import Path

import pytest

ALLOWED = {
    "weir": set(),
    "solvers": {"weir"},
    "workers": {"weir", "quality"},
    "traces": {"weir"},
    "cache": {"weir"},
    "quality": {"weir"},
    "load_balancer": {"weir"},
    "controller": {"weir", "solvers", "baselines"},
    "training": {"weir", "workers", "quality", "cache"},
    "baselines": {"weir", "solvers", "controller", "simulator", "traces"},
    "adoption": {"weir", "workers", "quality", "cache", "controller", "simulator", "baselines", "traces", "training"},
    "simulator": {"weir", "solvers", "controller", "load_balancer", "cache", "workers", "traces", "baselines"},
    "deploy": {"weir", "solvers", "controller", "load_balancer", "cache", "workers", "traces", "quality", "training"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names & set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_the_allowed_rooms(room: str) -> None:
    strays = {
        str(path): sorted(imported(path) - ALLOWED[room] - {room})
        for path in Path(room).rglob("*.py")
        if imported(path) - ALLOWED[room] - {room}
    }
    assert not strays


def test_the_load_balancer_does_not_import_workers() -> None:
    assert "workers" not in set().union(*(imported(p) for p in Path("load_balancer").rglob("*.py")))

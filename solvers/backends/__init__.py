"""Solvers of mixed-integer programs behind one interface, by name.

A backend takes a :class:`~solvers.milp.MixedProgram` and a time limit and answers with a vector or a reason. Adding one
is a class in its own file and an entry in :data:`BACKENDS`.
"""

from __future__ import annotations

from functools import cache

from solvers.backends.backend import Answer, Backend
from solvers.backends.cbc import Cbc
from solvers.backends.gurobi import Gurobi
from solvers.backends.highs import Highs
from weir.errors import ConfigError

#: In order of preference for ``auto``: the fastest first.
BACKENDS: dict[str, type[Backend]] = {"gurobi": Gurobi, "highs": Highs, "cbc": Cbc}


@cache
def backend(name: str) -> Backend:
    """The backend of that name; one object for the life of the process.

    Raises:
        ConfigError: no such name, or not usable on this machine (not installed, or no licence).
    """
    if name not in BACKENDS:
        raise ConfigError(f"solver is {name!r}; known: auto, {', '.join(BACKENDS)}")
    try:
        return BACKENDS[name]()
    except Exception as error:
        raise ConfigError(f"solver {name!r} cannot be used here: {error}") from error


@cache
def installed() -> tuple[str, ...]:
    """Names of the backends that work on this machine, the preferred one first."""
    names = []
    for name in BACKENDS:
        try:
            backend(name)
        except ConfigError:
            continue
        names.append(name)
    return tuple(names)


__all__ = ["BACKENDS", "Answer", "Backend", "backend", "installed"]

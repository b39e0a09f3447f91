"""Registry of the solver backends for mixed-integer programs.

A backend takes a :class:`~solvers.milp.MixedProgram` and a time limit and returns a vector or a reason. To add a
backend, write a class in its own file and add an entry to :data:`BACKENDS`.
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
    """Returns the backend of that name; there is one object per process.

    Raises:
        ConfigError: no backend has that name, or it cannot be used on this machine (not installed, or no licence).
    """
    if name not in BACKENDS:
        raise ConfigError(f"solver is {name!r}; known: auto, {', '.join(BACKENDS)}")
    try:
        return BACKENDS[name]()
    except Exception as error:
        raise ConfigError(f"solver {name!r} cannot be used here: {error}") from error


@cache
def installed() -> tuple[str, ...]:
    """Returns the names of the backends that work on this machine, the preferred one first."""
    names = []
    for name in BACKENDS:
        try:
            backend(name)
        except ConfigError:
            continue
        names.append(name)
    return tuple(names)


__all__ = ["BACKENDS", "Answer", "Backend", "backend", "installed"]

"""CBC backend through PuLP, which ships the binary. It starts a subprocess for each solve and serves machines without
the other two solvers."""

from __future__ import annotations

import numpy as np

from solvers.backends.backend import GAP, Answer, Backend
from solvers.milp import MixedProgram


class Cbc(Backend):
    name = "cbc"

    def __init__(self) -> None:
        import pulp
        from pulp.apis import coin_api

        # PuLP 3 ships the binary; PuLP 4 finds the binary of `pip install pulp[cbc]`.
        self._path = getattr(coin_api, "pulp_cbc_path", None)
        if not pulp.COIN_CMD(path=self._path).available():
            raise RuntimeError("PuLP has no CBC binary for this machine")
        self._pulp = pulp

    def solve(self, program: MixedProgram, time_limit_s: float) -> Answer:
        pulp = self._pulp
        problem = pulp.LpProblem("weir", pulp.LpMaximize)
        x = [
            problem.add_variable(f"x{i}", 0, upper, pulp.LpInteger if integer else pulp.LpContinuous)
            for i, (upper, integer) in enumerate(zip(program.upper, program.integer, strict=True))
        ]
        problem += pulp.LpAffineExpression((v, c) for v, c in zip(x, program.objective, strict=True) if c)
        for row, (lower, upper) in enumerate(zip(program.row_lower, program.row_upper, strict=True)):
            span = slice(program.starts[row], program.starts[row + 1])
            expression = pulp.LpAffineExpression(
                (x[c], v) for c, v in zip(program.columns[span], program.values[span], strict=True)
            )
            if lower == upper:
                problem += expression == lower
                continue
            if np.isfinite(lower):
                problem += expression >= lower
            if np.isfinite(upper):
                problem += expression <= upper
        try:
            # threads stays unset: with two threads, one solve in a hundred takes ten seconds.
            problem.solve(pulp.COIN_CMD(path=self._path, msg=False, timeLimit=time_limit_s, gapRel=GAP))
        except pulp.PulpSolverError as error:
            return Answer(None, False, f"CBC: {error}")
        found = (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
        if problem.sol_status not in found:
            return Answer(None, False, f"CBC: {pulp.LpStatus[problem.status]}")
        values = np.array([v.value() or 0.0 for v in x])
        return Answer(values, problem.sol_status == pulp.LpSolutionOptimal)

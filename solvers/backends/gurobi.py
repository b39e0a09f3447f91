"""Gurobi backend, directly through gurobipy (PuLP's wrapper takes six times as long).

It needs a licence for the size of the program. The licence that comes with the package allows 2,000 columns and rows,
which is more than these programs need.
"""

from __future__ import annotations

import numpy as np

from solvers.backends.backend import GAP, Answer, Backend
from solvers.milp import MixedProgram


class Gurobi(Backend):
    name = "gurobi"

    def __init__(self) -> None:
        import gurobipy

        self._gurobipy = gurobipy
        # OutputFlag must be set before the environment starts; otherwise the licence banner goes to stdout.
        self._env = gurobipy.Env(params={"OutputFlag": 0, "Threads": 1})

    def solve(self, program: MixedProgram, time_limit_s: float) -> Answer:
        import scipy.sparse

        grb = self._gurobipy.GRB
        try:
            with self._gurobipy.Model(env=self._env) as model:
                types = np.where(program.integer, grb.INTEGER, grb.CONTINUOUS)
                x = model.addMVar(len(program.objective), ub=np.array(program.upper, dtype=float), vtype=types)
                model.setObjective(np.array(program.objective) @ x, grb.MAXIMIZE)
                matrix = scipy.sparse.csr_matrix(
                    (program.values, program.columns, program.starts),
                    shape=(len(program.row_lower), len(program.objective)),
                )
                for bounds, sense in ((program.row_lower, ">"), (program.row_upper, "<")):
                    limits = np.array(bounds, dtype=float)
                    rows = np.isfinite(limits)
                    model.addMConstr(matrix[rows], x, sense, limits[rows])
                model.Params.TimeLimit = time_limit_s
                model.Params.MIPGap = GAP
                model.Params.MIPGapAbs = GAP
                model.optimize()
                if model.SolCount == 0:
                    return Answer(None, False, f"Gurobi status {model.Status}")
                return Answer(np.asarray(x.X), model.Status == grb.OPTIMAL)
        except self._gurobipy.GurobiError as error:
            return Answer(None, False, f"Gurobi: {error}")

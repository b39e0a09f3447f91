"""HiGHS backend, in the same process through highspy."""

from __future__ import annotations

import numpy as np

from solvers.backends.backend import GAP, Answer, Backend
from solvers.milp import MixedProgram


class Highs(Backend):
    name = "highs"

    def __init__(self) -> None:
        import highspy

        self._highspy = highspy

    def solve(self, program: MixedProgram, time_limit_s: float) -> Answer:
        highspy = self._highspy
        lp = highspy.HighsLp()
        lp.num_col_ = len(program.objective)
        lp.num_row_ = len(program.row_lower)
        lp.sense_ = highspy.ObjSense.kMaximize
        lp.col_cost_ = np.array(program.objective)
        lp.col_lower_ = np.zeros(lp.num_col_)
        lp.col_upper_ = np.array(program.upper, dtype=float)
        lp.row_lower_ = np.array(program.row_lower, dtype=float)
        lp.row_upper_ = np.array(program.row_upper, dtype=float)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.array(program.starts, dtype=np.int32)
        lp.a_matrix_.index_ = np.array(program.columns, dtype=np.int32)
        lp.a_matrix_.value_ = np.array(program.values, dtype=float)
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if i else kinds.kContinuous for i in program.integer]

        highs = highspy.Highs()
        for key, value in (
            ("output_flag", False),
            ("threads", 1),
            ("time_limit", time_limit_s),
            ("mip_rel_gap", GAP),
            ("mip_abs_gap", GAP),
        ):
            highs.setOptionValue(key, value)
        highs.passModel(lp)
        highs.run()
        status = highs.getModelStatus()
        found = highs.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        if not found:
            return Answer(None, False, highs.modelStatusToString(status))
        x = np.array(highs.getSolution().col_value)
        return Answer(x, status == highspy.HighsModelStatus.kOptimal)

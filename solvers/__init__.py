"""Allocation solvers: the number of GPUs of each type for each variant, the thresholds, and the alignment of levels."""

"""Comparisons of policies on the same trace: runs, tables and pages."""

"""Weights that come with the code."""

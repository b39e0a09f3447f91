"""Weir: text-to-image diffusion models on Ray, at the best quality that a deadline and a set of GPUs allow."""

__version__ = "0.1.0"

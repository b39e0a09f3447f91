"""Adapters: one for each architecture of diffusion models that Weir serves."""

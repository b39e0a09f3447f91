"""Traces: generators, loaders, the replay client and its report."""

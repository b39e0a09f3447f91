"""Composition: the Serve application, configurations, cluster files."""

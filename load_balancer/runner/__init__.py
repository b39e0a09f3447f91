"""Runs admitted requests: executes the actions of the cascade on the pool and the cache."""

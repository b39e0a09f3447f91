"""Runs admitted requests: executes the actions of the cascade on the pool and on the cache."""

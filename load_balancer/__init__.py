"""The HTTP API, admission, the cascade path and dispatch."""

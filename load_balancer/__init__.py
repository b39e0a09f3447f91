"""The load balancer: HTTP API, admission control, execution of the cascade, and dispatch to replicas."""

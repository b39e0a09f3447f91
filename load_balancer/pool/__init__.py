"""The pool of worker replicas: calls to a chosen replica, and the registry of live replicas."""

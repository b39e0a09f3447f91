"""The pool of worker replicas: calls to a chosen replica, and which replicas are alive."""

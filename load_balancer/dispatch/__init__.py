"""Dispatch: which replica gets an image, by predicted finish time, and which replicas stopped answering."""

"""Dispatch: which replica gets an image, by predicted finish time, and detection of replicas that stopped answering."""

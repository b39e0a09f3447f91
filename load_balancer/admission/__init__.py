"""Admission control: who may send a request now, and under which plan and deadline it runs."""

"""Admission control: which requests are accepted now, by predicted finish time, queue, rate and quota."""

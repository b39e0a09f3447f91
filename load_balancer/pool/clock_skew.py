"""Difference between the clocks of two hosts, as far as one answer proves it. Pure."""

from __future__ import annotations


def clock_skew_s(theirs: float, asked: float, answered: float) -> float:
    """Seconds by which another host's clock is ahead of ours; negative: behind.

    The other host read its clock after it was asked and before we had the answer, so every time in between proves no
    difference, and the result is the smallest difference that explains the answer.

    Args:
        theirs: unix time that the other host answered with.
        asked, answered: unix times of our clock when the question left and when the answer arrived.
    """
    return max(0.0, theirs - answered) + min(0.0, theirs - asked)

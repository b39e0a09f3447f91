"""What the times of a trace file mean: unix times are told by their magnitude, and counted from the first one.

A unix time of 2000 to 2100 has nine or ten digits in seconds, three more in milliseconds, and so on: the ranges of the
units do not meet, so a column whose least value lies in one of them is a column of unix times in that unit, whatever
its name says. Anything else is a time since the start, in the unit that the column's name says.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

#: Unix times in seconds that are taken for such: from 2000 to 2100.
_UNIX = (Decimal(946_684_800), Decimal(4_102_444_800))
#: Unit → how many of them a second has.
UNITS = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
#: Ends of column names → unit.
SUFFIXES = {"_s": "seconds", "_ms": "milliseconds", "_us": "microseconds", "_ns": "nanoseconds"}
#: No trace that somebody replays lasts longer; a time since the start beyond it is in another unit.
LONGEST_S = 366 * 86_400


class ClockProblem(ValueError):
    """The times of a column cannot be read as one clock; ``row`` is the number of the time that does not fit."""

    def __init__(self, row: int, problem: str):
        super().__init__(problem)
        self.row = row


def exact_number(cell: str) -> Decimal | None:
    """The finite number of a cell, with all its digits; a float has too few for unix time in nanoseconds."""
    try:
        value = Decimal(cell)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def unit_of(column: str) -> str | None:
    """The unit that the name of a column says; None where it says none."""
    return next((unit for suffix, unit in SUFFIXES.items() if column.endswith(suffix)), None)


def seconds(times: Sequence[Decimal], unit: str) -> list[float]:
    """Seconds since the start, or since the first of them where they are unix times.

    Args:
        times: at least one, each at least 0.
        unit: of times since the start.

    Raises:
        ClockProblem: some are unix times in one unit and some are not, or they reach further than any trace.
    """
    start = min(times)
    unix = _unix_unit(start)
    if unix is None:
        per_s = UNITS[unit]
        row, longest = max(enumerate(times), key=lambda it: it[1])
        if longest / per_s > LONGEST_S:
            told = _unix_unit(longest)
            what = f"unix time in {told}" if told else f"{longest / per_s / 86_400:.0f} days as {unit}"
            raise ClockProblem(
                row,
                f"{longest} is {what}, and other lines begin at {start}; write one clock, and its unit in the column's "
                f"name (timestamp{', timestamp'.join(SUFFIXES)})",
            )
        return [float(time / per_s) for time in times]
    for row, time in enumerate(times):
        if (other := _unix_unit(time)) != unix:
            what = f"unix time in {other}" if other else "no unix time"
            raise ClockProblem(row, f"{time} is {what}, and other lines are unix time in {unix}; write one clock")
    return [float((time - start) / UNITS[unix]) for time in times]


def _unix_unit(time: Decimal) -> str | None:
    first, last = _UNIX
    return next((unit for unit, per_s in UNITS.items() if first <= time / per_s < last), None)

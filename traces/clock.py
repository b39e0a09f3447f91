"""Interprets the times of a trace file: unix times are recognised by their magnitude and counted from the first one.

A unix time of 2000 to 2100 has nine or ten digits in seconds, three more in milliseconds, and so on. The ranges of the
units are disjoint, so if the smallest value of a column lies in one of them, the column holds unix times in that unit,
regardless of its name. Otherwise it holds times since the start, in the unit that its name gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

#: Range of unix times in seconds, from 2000 to 2100.
_UNIX = (Decimal(946_684_800), Decimal(4_102_444_800))
#: Unit → number of units in a second.
UNITS = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
#: Ends of column names → unit.
SUFFIXES = {"_s": "seconds", "_ms": "milliseconds", "_us": "microseconds", "_ns": "nanoseconds"}
#: Largest power of ten of a time: nanoseconds of unix time have 19 digits.
_MOST_DIGITS = 30
#: Range in which spreadsheets count the days of 2000 to 2100.
_SPREADSHEET_DAYS = (Decimal(36_526), Decimal(73_051))
#: Longest duration of a trace; a larger time since the start must be in another unit.
LONGEST_S = 366 * 86_400


class ClockProblem(ValueError):
    """The times of a column are not on one clock; ``row`` is the index of the time that does not fit."""

    def __init__(self, row: int, problem: str):
        super().__init__(problem)
        self.row = row


def exact_number(cell: str) -> Decimal | None:
    """The number in a cell with all its digits, or None; also None for numbers that no time or seed can have.

    A float is too short for nanoseconds of unix time.
    """
    try:
        value = Decimal(cell)
    except InvalidOperation:
        return None
    return value if value.is_finite() and value.adjusted() <= _MOST_DIGITS else None


def unit_of(column: str) -> str | None:
    """The unit in the name of a column, or None."""
    return next((unit for suffix, unit in SUFFIXES.items() if column.endswith(suffix)), None)


def are_spreadsheet_days(times: Sequence[Decimal]) -> bool:
    """Whether times look like dates that a spreadsheet has written as numbers: days since 1900, with fractions."""
    first, last = _SPREADSHEET_DAYS
    return all(first <= time < last for time in times) and any(time != time.to_integral_value() for time in times)


def seconds(times: Sequence[Decimal], unit: str) -> list[float]:
    """Converts times to seconds since the start, or since the first time if they are unix times.

    Args:
        times: at least one time, each at least 0.
        unit: unit of times since the start.

    Raises:
        ClockProblem: unix times and other times are mixed, or times exceed :data:`LONGEST_S`.
    """
    start = min(times)
    unix = _unix_unit(start)
    if unix is None:
        per_s = UNITS[unit]
        row, longest = max(enumerate(times), key=lambda it: it[1])
        if longest / per_s > LONGEST_S:
            other = _unix_unit(longest)
            what = f"unix time in {other}" if other else f"{longest / per_s / 86_400:.0f} days as {unit}"
            raise ClockProblem(
                row,
                f"{longest} is {what}, and other lines begin at {start}; use one clock, and give its unit in the "
                f"column's name (timestamp{', timestamp'.join(SUFFIXES)})",
            )
        return [float(time / per_s) for time in times]
    for row, time in enumerate(times):
        if (other := _unix_unit(time)) != unix:
            what = f"unix time in {other}" if other else "not a unix time"
            raise ClockProblem(row, f"{time} is {what}, and other lines are unix time in {unix}; use one clock")
    return [float((time - start) / UNITS[unix]) for time in times]


def _unix_unit(time: Decimal) -> str | None:
    first, last = _UNIX
    return next((unit for unit, per_s in UNITS.items() if first <= time / per_s < last), None)

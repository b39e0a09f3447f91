"""Lines of CSV files that spreadsheets and Python read alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable


def csv_line(cells: Iterable[object]) -> str:
    """One line with its end. Cells with either half of a line break are quoted, whatever ends the line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"

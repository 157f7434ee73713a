"""CSV as it leaves the package: no cell of text that a spreadsheet would compute, or a terminal obey."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@")
"""How a cell begins that Excel, LibreOffice or Google Sheets may compute (OWASP, CSV injection)."""

GUARD = "'"


def guarded(text: str) -> str:
    """Return text for a cell: printable, a ' before what would be a formula, as spreadsheets themselves write it."""
    text = printable(text)
    return GUARD + text if text.startswith(FORMULA) else text


def printable(text: str) -> str:
    """Return text with escapes for what would move a cursor, turn a line around or cannot be encoded."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unguarded(cell: str) -> str:
    """Return the text that `guarded` made a cell of; escapes stay."""
    return cell[1:] if cell.startswith(GUARD) and cell[1:].startswith(FORMULA) else cell


def csv_rows(rows: Iterable[Iterable[str | float | None]], decimals: int = 6) -> bytes:
    """Return rows as CSV: text guarded, numbers with so many decimals, what is NaN or None left empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value, decimals) for value in row] for row in rows)
    return text.getvalue().encode()


def _cell(value: str | float | None, decimals: int) -> str:
    if isinstance(value, str):
        return guarded(value)
    if value is None or value != value:  # noqa: PLR0124 - NaN, of any type
        return ""
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def csv_table(table: pd.DataFrame, float_format: str | None = None) -> bytes:
    """Return a table as CSV, a line of column names first, text guarded in both."""
    safe = table.map(lambda value: guarded(value) if isinstance(value, str) else value)
    safe.columns = [guarded(str(name)) for name in table.columns]
    return bytes(safe.to_csv(index=False, lineterminator="\n", float_format=float_format).encode())

"""CSV: cells that no spreadsheet computes, and that come back as they were."""

from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_seq.tables import FORMULA, csv_rows, csv_table, guarded, unguarded


@given(st.text())
def test_a_guarded_cell_is_no_formula_and_can_be_undone(text):
    """Whatever the text, its cell begins like none and is printable; printable text comes back, but for a guard."""
    assert not guarded(text).startswith(FORMULA)
    assert guarded(text).isprintable()
    if text.isprintable() and unguarded(text) == text:
        assert unguarded(guarded(text)) == text


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1))
def test_rows_come_back_as_they_were(rows):
    """Commas, quotes and line ends within cells make neither cells nor rows, by the csv module as the reader."""
    read = list(csv.reader(io.StringIO(csv_rows(rows).decode(), newline=""), strict=True))
    assert read == [[guarded(cell) for cell in row] for row in rows]


def test_numbers_are_no_text():
    """A minus sign begins no formula before a number; what is no number leaves its cell empty."""
    assert csv_rows([[-1.5, -2, np.float64(-0.25), np.nan, None]]) == b"-1.500000,-2,-0.250000,,\n"
    assert csv_rows([["-1.5"]]) == b"'-1.5\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a"])
def test_a_table_is_guarded_in_its_cells_and_in_its_head(text):
    """Column names may be somebody's text too; numbers stay."""
    read = pd.read_csv(io.BytesIO(csv_table(pd.DataFrame({text: [text], "n": [-1.5]}))))
    assert list(read.columns) == [f"'{text}", "n"]
    assert read.iloc[0].tolist() == [f"'{text}", -1.5]


def test_what_is_not_printable_is_escaped():
    """A name on disk may be bytes of no encoding, turn a line around or clear a screen."""
    assert csv_rows([["caf\udce9", "a\r\nb", "\x1b[2J", "\u202egpj"]]) == b"caf\\udce9,a\\r\\nb,\\x1b[2J,\\u202egpj\n"

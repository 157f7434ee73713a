"""The table of codes, held against the dictionary of DICOM's concepts that pydicom carries."""

from __future__ import annotations

import re

import pytest
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts

from ich_seq import codes
from ich_seq.codes import ALL, ANSWERS, COHORTS, FINDINGS, SITES, Verdict
from ich_seq.labels import LABELS

ROWS = {row.meaning: row for row in ALL}


def groups_of(row) -> set[int]:
    """The context groups that hold a code, by pydicom; raises KeyError if no dictionary of DICOM has it."""
    found = [
        group for named in concepts[row.scheme].values() for value, (_, group) in named.items() if value == row.value
    ]
    if not found:
        raise KeyError(row.value)
    return {number for group in found for number in group}


def meanings_of(row) -> set[str]:
    return {named[row.value][0] for named in concepts[row.scheme].values() if row.value in named}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_is_where_its_source_says(row):
    """DICOM's codes are in its dictionary, in the context group named and under that meaning; the others are not."""
    if row.source == COHORTS:
        with pytest.raises(KeyError):
            groups_of(row)
        return
    assert row.source.startswith("PS3.16")
    group = re.search(r"CID (\d+)", row.source)
    if group:
        assert int(group[1]) in groups_of(row)
        assert row.meaning in meanings_of(row)
    else:
        assert row.scheme == "UMLS" or groups_of(row) is not None


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_fits_its_elements(row):
    """PS3.5 6.2: a Code Value (SH) has 16 letters at most, a Code Meaning (LO) 64."""
    assert 0 < len(row.value) <= 16
    assert 0 < len(row.meaning) <= 64
    assert (row.value + row.meaning).isascii()


def test_every_label_says_something_else():
    """Finding and site together name a label, and one that is not known by its finding has a site."""
    assert tuple(FINDINGS) == LABELS
    said = [(FINDINGS[label].value, SITES[label].value if label in SITES else "") for label in LABELS]
    assert len(set(said)) == len(LABELS)


def test_the_answers_are_those_of_the_context_group():
    """CID 240 has three, and each is a verdict of the same name."""
    assert {ANSWERS[verdict].meaning for verdict in Verdict} == set(cid_concepts[240]["SCT"])
    assert all(str(verdict) == ANSWERS[verdict].meaning for verdict in Verdict)


def test_no_value_means_two_things():
    """Two rows of one code are one row."""
    assert len({(row.scheme, row.value) for row in ALL}) == len(set(ALL))
    assert codes.FINDINGS["any"] is codes.INTRACRANIAL_HEMORRHAGE

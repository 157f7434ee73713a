"""Tables in place of files: which form they are, what becomes of each row, and that the rows' order is nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ich_seq import UsageError
from ich_seq.labels import LABELS, SUBTYPES, read_labels
from ich_seq.slice_tables import NO_ID, is_table, read_slice_table, read_study_table, table_kind
from ich_seq.studies import group_studies

AXIAL = ["1", "0", "0", "0", "1", "0"]


def slices(n=6, **columns):
    """A table of one study, feet to head, as text; columns of lists or of one text for all replace or join it."""
    table = {"image_id": [f"ID_{i}" for i in range(n)], "StudyInstanceUID": "S", "SeriesInstanceUID": "R"}
    table |= {"PatientID": "P", "BitsStored": "16", "PixelRepresentation": "1", "Rows": "512", "Columns": "512"}
    table |= {"RescaleSlope": "1.0", "RescaleIntercept": "-1024"}
    table |= {f"ImagePositionPatient_{k}": "-125.5" for k in (1, 2)}
    table |= {"ImagePositionPatient_3": [str(5.0 * i) for i in range(n)]}
    table |= {f"ImageOrientationPatient_{k + 1}": value for k, value in enumerate(AXIAL)}
    table |= {f"PixelSpacing_{k}": "0.488" for k in (1, 2)}
    return pd.DataFrame(table | columns)


def written(table, path):
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zip", "t.csv.xz", "t.CSV"])
def test_a_table_is_told_by_its_name_compressed_or_not(tmp_path, name):
    """Kaggle's downloads are zipped; a folder or a DICOM file is no table."""
    path = written(slices(), tmp_path / name)
    assert is_table(path)
    assert not is_table(tmp_path)
    assert table_kind(path) == "slices"
    assert len(read_slice_table(path).headers) == 6


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (["ID", "Label"], "labels"),
        (["Image", *SUBTYPES], "labels"),
        (["image_id", *LABELS, "StudyInstanceUID"], "labels"),
        (["StudyInstanceUID", *SUBTYPES], "studies"),
        (["SOPInstanceUID", "StudyInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"], "slices"),
    ],
    ids=str,
)
def test_the_form_is_told_by_the_columns(tmp_path, columns, kind):
    """A row a slice with geometry, labels of slices, or a row a study."""
    path = written(pd.DataFrame([["1"] * len(columns)], columns=columns), tmp_path / "t.csv")
    assert table_kind(path) == kind


def test_a_table_of_no_known_form_is_refused_with_the_forms_there_are(tmp_path):
    """The message names what was expected and what was found; what is no table at all is refused too."""
    with pytest.raises(UsageError, match=r"no table that can be explored: .*StudyInstanceUID.* Found colour, size"):
        table_kind(written(pd.DataFrame({"colour": ["red"], "size": ["1"]}), tmp_path / "t.csv"))
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip at all")
    with pytest.raises(UsageError, match="Cannot read the table"):
        table_kind(tmp_path / "b.csv.gz")


@pytest.mark.parametrize(
    "form",
    ["['{}', '{}', '{}', '{}', '{}', '{}']", "[{}, {}, {}, {}, {}, {}]", r"{}\{}\{}\{}\{}\{}", "({} {} {} {} {} {})"],
)
def test_values_of_many_may_stand_in_one_column(tmp_path, form):
    """As text of a list, as pydicom writes it or as DICOM does: the headers are those of numbered columns."""
    given = slices(PixelSpacing_1="0.5")
    packed = given.copy()
    for keyword, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        names = [f"{keyword}_{i}" for i in range(1, n + 1)]
        start, *_, end = form.split("{}")
        between = form.split("{}")[1]
        packed[keyword] = [start + between.join(row) + end for row in given[names].to_numpy()]
        packed = packed.drop(columns=names)
    path = written(packed, tmp_path / "packed.csv")
    assert read_slice_table(path).headers == read_slice_table(written(given, tmp_path / "t.csv")).headers


def test_values_of_many_may_be_numbered_from_0_or_as_fastai_does(tmp_path):
    """X_0, X_1, X_2, and X, X1, X2 hold the same as X_1, X_2, X_3."""
    given = slices()
    expected = read_slice_table(written(given, tmp_path / "t.csv")).headers
    zero = given.rename(columns=lambda c: f"{c[:-1]}{int(c[-1]) - 1}" if c[-2:-1] == "_" else c)
    fastai = zero.rename(columns=lambda c: (c[:-2] + c[-1:]).removesuffix("0") if c[-2:-1] == "_" else c)
    assert "ImagePositionPatient" in fastai.columns
    assert "ImagePositionPatient2" in fastai.columns
    assert read_slice_table(written(zero, tmp_path / "zero.csv")).headers == expected
    assert read_slice_table(written(fastai, tmp_path / "fastai.csv")).headers == expected


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("image_id", "", "missing_tag"),
        ("StudyInstanceUID", " ", "missing_tag"),
        ("ImagePositionPatient_3", "nan", "geometry"),
        ("ImagePositionPatient_1", "inf", "geometry"),
        ("ImagePositionPatient_2", "1e9", "geometry"),
        ("ImagePositionPatient_2", "left", "geometry"),
        ("ImageOrientationPatient_1", "", "geometry"),
        ("ImageOrientationPatient_1", "2", "geometry"),
        ("PixelSpacing_1", "70", "geometry"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_kills_no_other(tmp_path, column, value, reason):
    """One bad cell: five headers, one verdict with its reason, and all rows are accounted for."""
    table = slices()
    table.loc[2, column] = value
    read = read_slice_table(written(table, tmp_path / "t.csv"))
    assert [h.sop_uid for h in read.headers] == ["ID_0", "ID_1", "ID_3", "ID_4", "ID_5"]
    (unused,) = read.unused
    assert (unused.file, unused.reason, unused.fate) == (NO_ID if column == "image_id" else "ID_2", reason, "rejected")
    assert read.n_rows == 6


def test_a_sagittal_slice_is_excluded_not_rejected(tmp_path):
    """Nothing is wrong with it; a rule leaves it out."""
    turned = dict(
        zip((f"ImageOrientationPatient_{k}" for k in range(1, 7)), ["0", "1", "0", "0", "0", "-1"], strict=True)
    )
    read = read_slice_table(written(slices(**turned), tmp_path / "t.csv"))
    assert {(u.reason, u.fate) for u in read.unused} == {("not_axial", "excluded")}
    assert read.headers == ()


def test_what_a_table_does_not_tell_is_unknown_and_no_fault(tmp_path):
    """Only id, study and geometry are asked for; sizes, bits and slopes are 0, which no slice has."""
    table = slices()
    few = table[[c for c in table.columns if c.startswith(("image_id", "Study", "Image"))]]
    header = read_slice_table(written(few, tmp_path / "t.csv")).headers[0]
    assert (header.rows, header.columns, header.bits_stored, header.slope) == (0, 0, 0, 0)
    assert (header.spacing_mm, header.patient_id, header.series_uid, header.scanner) == ((0, 0), "", "", "")


def test_rows_in_any_order_make_the_same_studies(tmp_path):
    """Copies and contradictions too: the table is shuffled, the answer is not."""
    table = pd.concat([slices(9), slices(9).iloc[:2], slices(9).iloc[3:4].assign(ImagePositionPatient_3="77")])
    tables = [table, table.sample(frac=1, random_state=1), table.iloc[::-1]]
    reads = [read_slice_table(written(t, tmp_path / f"{i}.csv")) for i, t in enumerate(tables)]
    assert reads[0] == reads[1] == reads[2]
    studies, unused = group_studies(reads[0].headers)
    assert len(studies[0].slices) == 8
    assert sorted(str(u.reason) for u in unused) == ["duplicate", "duplicate", "sop_conflict", "sop_conflict"]


def test_labels_of_the_table_are_read_and_empty_ones_are_none(tmp_path):
    """As read_labels has them; rows without any are unlabelled, `any` may be absent and is the maximum."""
    labels = {label: ["0", "1", "", "0.0", "1.0", "0"] if label == "subdural" else ["0", "0", "", "0", "0", "0"]
              for label in SUBTYPES}  # fmt: skip
    read = read_slice_table(written(slices(**labels), tmp_path / "t.csv"))
    table = read.labels.table
    assert table.index.tolist() == ["ID_0", "ID_1", "ID_3", "ID_4", "ID_5"]
    assert table["any"].tolist() == table["subdural"].tolist() == [0, 1, 0, 1, 0]
    whole = slices(**{label: [v or "0" for v in values] for label, values in labels.items()})
    path = written(whole, tmp_path / "whole.csv")
    pd.testing.assert_frame_equal(read_slice_table(path).labels.table, read_labels(path).table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subdural": ["2", *"00000"]}, "neither 0 nor 1 for ID_0"),
        ({"subdural": ["", *"00000"]}, "neither 0 nor 1 for ID_0"),
        ({"subdural": list("100000")}, "'any' is 0 beside a positive subtype for ID_0"),
        ({"image_id": ["ID_1", *(f"ID_{i}" for i in range(1, 6))], "subdural": list("100000"), "any": list("100000")},
         "two rows disagree about ID_1"),
    ],
    ids=["2", "half empty", "any", "two"],
)  # fmt: skip
def test_labels_that_cannot_be_meant_are_refused(tmp_path, changes, message):
    """As in a label file: a wrong label is not repaired by leaving it out."""
    path = written(slices(**(dict.fromkeys(LABELS, "0") | changes)), tmp_path / "t.csv")
    with pytest.raises(UsageError, match=message):
        read_slice_table(path)


def test_each_row_of_a_table_of_studies_has_one_fate(tmp_path):
    """A copy is excluded; a contradiction, a row without study and one without labels are rejected."""
    rows = [
        ("b", "P1", 1),
        ("a", "P1", 0),
        ("a", "P1", 0),
        ("c", "P2", 0),
        ("c", "P3", 0),
        ("", "P4", 0),
        ("d", "", ""),
    ]
    rows += [("e", "", 1)]
    table = pd.DataFrame(
        [{"StudyInstanceUID": u, "PatientID": p, **dict.fromkeys(SUBTYPES, v)} for u, p, v in rows], dtype=str
    )
    shuffled = table.iloc[::-1], table.sample(frac=1, random_state=0)
    reads = [read_study_table(written(t, tmp_path / "t.csv")) for t in (table, *shuffled)]
    for read in reads:
        assert read.uids == ("a", "b", "e")
        assert read.patients == ("P1", "P1", "study e")
        assert read.targets.tolist() == [[0] * 6, [1] * 6, [1] * 6]
        assert [(u.file, str(u.reason)) for u in read.unused] == [
            (NO_ID, "missing_tag"), ("a", "duplicate"), ("c", "sop_conflict"), ("c", "sop_conflict"),
            ("d", "missing_tag"),
        ]  # fmt: skip
        assert read.n_rows == len(read.uids) + len(read.unused)


@pytest.mark.slow
def test_the_challenges_table_is_read_whole(shared_data):
    """1,110 studies of 39,409 real slices: the labels are read_labels' own, and no row is lost."""
    path = shared_data / "rsna_tables" / "stage1test_slices.csv.gz"
    read = read_slice_table(path)
    assert (len(read.headers), read.unused, read.n_rows) == (39409, (), 39409)
    assert np.array_equal(read.labels.table.sort_index(), read_labels(path).table.sort_index())
    assert len(group_studies(read.headers)[0]) == 1110

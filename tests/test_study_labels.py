"""Labels of studies: what two of three readers see, or a row a study; slices stay with read_labels."""

from __future__ import annotations

import lzma
import zlib

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq import UsageError
from ich_seq.labels import LABELS, SliceLabels, read_labels
from ich_seq.study_labels import StudyLabels, read_any_labels

SUBTYPES = LABELS[:-1]
CALLED = {
    "epidural": "EDH",
    "intraparenchymal": "IPH",
    "intraventricular": "IVH",
    "subarachnoid": "SAH",
    "subdural": "SDH",
    "any": "ICH",
}
OTHER_READS = ("ChronicICH", "Fracture", "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift")
READS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", *OTHER_READS)
COLUMNS = ("name", "Category", *(f"R{reader}:{read}" for reader in (1, 2, 3) for read in READS))
"""As the file of Chilamkurthy et al. has them."""


def reads_csv(rows: list[dict[str, object]]) -> str:
    """CQ500's reads.csv, patients numbered from 0, zeros where nothing is said."""
    lines = [
        [str(row.get(c, {"name": f"CQ500-CT-{i}", "Category": "B1"}.get(c, 0))) for c in COLUMNS]
        for i, row in enumerate(rows)
    ]
    return "\n".join(map(",".join, [list(COLUMNS), *lines])) + "\n"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Write a text, or bytes, to a file and read it as labels."""
    folder = tmp_path_factory.mktemp("labels")

    def write_and_read(content, name="labels.csv"):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_any_labels(path)

    return write_and_read


@settings(deadline=None, max_examples=25)
@given(
    votes=st.lists(
        st.lists(st.integers(0, 1), min_size=3 * len(READS), max_size=3 * len(READS)), min_size=1, max_size=5
    ),
    form=st.sampled_from(["{}", "{}.0", " {} "]),
)
def test_two_of_three_readers_decide(read, votes, form):
    """Counted one by one: each label of each patient is there if at least two said 1, whatever else they said."""
    names = [f"R{reader}:{r}" for reader in (1, 2, 3) for r in READS]
    rows = [dict(zip(names, of_patient, strict=True)) for of_patient in votes]
    labels = read(reads_csv([{k: form.format(v) for k, v in row.items()} for row in rows]))
    assert isinstance(labels, StudyLabels)
    assert list(labels.table.columns) == list(LABELS)
    assert list(labels.table.index) == [f"CQ500-CT-{i}" for i in range(len(rows))]
    for i, row in enumerate(rows):
        for label in LABELS:
            said = 0
            for reader in (1, 2, 3):
                said += row[f"R{reader}:{CALLED[label]}"]
            assert labels.table.loc[f"CQ500-CT-{i}", label] == (1 if said >= 2 else 0)


def test_any_is_the_readers_ich_and_no_maximum(read):
    """Three readers who each see another subtype agree on a haemorrhage, and on no subtype."""
    row = {f"R{reader}:ICH": 1 for reader in (1, 2, 3)} | {"R1:SDH": 1, "R2:SAH": 1, "R3:EDH": 1}
    assert read(reads_csv([row])).table.loc["CQ500-CT-0"].tolist() == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("column", ["name", *(f"R{reader}:{read}" for reader in (1, 2, 3) for read in CALLED.values())])
def test_a_missing_column_of_reads_is_refused(read, column):
    """No reader is left out in silence: the file and the column are named (without R1:ICH it is no such file)."""
    text = reads_csv([{}]).replace(column, "else", 1)
    words = "is not a label file" if column == "R1:ICH" else rf"labels\.csv .*lacks {column}\."
    with pytest.raises(UsageError, match=words):
        read(text)


@pytest.mark.parametrize("value", ["", "2", "-1", "yes", "nan", "0.5", "1.00"])
@pytest.mark.parametrize("column", ["R1:ICH", "R2:SDH", "R3:EDH"])
def test_reads_other_than_0_and_1_are_refused(read, column, value):
    """The column is named, and the row as an editor numbers it, the header being the first."""
    with pytest.raises(UsageError, match=rf"labels\.csv: {column} in row 3 is neither 0 nor 1"):
        read(reads_csv([{}, {column: value}, {}]))


def test_a_patient_twice_is_refused(read):
    """Two rows of one patient would have to be guessed between, even if they agree."""
    with pytest.raises(UsageError, match=r"labels\.csv: rows 3 and 4 are of the same name"):
        read(reads_csv([{}, {}, {"name": " CQ500-CT-1"}]))


def studies_csv(name: str, rows: dict[str, tuple[int, ...]], columns: tuple[str, ...] = LABELS) -> str:
    """A row a study under this name, beside a column that is nobody's business."""
    lines = [",".join(map(str, (uid, "x", *row))) for uid, row in rows.items()]
    return "\n".join([",".join((name, "fold", *columns)), *lines]) + "\n"


@pytest.mark.parametrize("name", ["study_uid", "StudyInstanceUID", "patient_id", "PatientID"])
def test_a_row_a_study_under_every_name(read, name):
    """By Study Instance UID or Patient ID; the columns in any order, blanks around names and values do no harm."""
    backwards = tuple(f" {label}" for label in reversed(LABELS))
    labels = read(studies_csv(f"{name} ", {" a ": (1, 0, 1, 0, 0, 0), "007": (0, 0, 0, 0, 0, 0)}, backwards))
    assert isinstance(labels, StudyLabels)
    assert labels.table.to_dict("list") == {k: [int(k in ("any", "subarachnoid")), 0] for k in LABELS}
    assert list(labels.table.index) == ["a", "007"]


@settings(deadline=None, max_examples=15)
@given(rows=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=6))
def test_any_that_is_absent_is_the_maximum(read, rows):
    """A study is positive if one of its subtypes is."""
    labels = read(studies_csv("study_uid", {f"1.{i}": tuple(row) for i, row in enumerate(rows)}, SUBTYPES))
    for (_, found), row in zip(labels.table.iterrows(), rows, strict=True):
        assert found.tolist() == [*row, 1 if 1 in row else 0]


def test_the_study_goes_before_the_patient(read):
    """Where both are named rows are of studies: two of one patient are no doubles."""
    text = studies_csv("PatientID,StudyInstanceUID", {"p,1.1": (0,) * 6, "p,1.2": (0, 1, 0, 0, 0, 1)})
    assert list(read(text).table.index) == ["1.1", "1.2"]


def test_rows_of_studies_that_cannot_be_meant_are_refused(read):
    """Values other than 0 and 1 by column and row, a study twice, no row at all."""
    with pytest.raises(UsageError, match=r"labels\.csv: subdural in row 3 is neither 0 nor 1"):
        read(studies_csv("study_uid", {"a": (0,) * 6, "b": (0, 0, 0, 0, 3, 1)}))
    with pytest.raises(UsageError, match="any in row 2 is neither 0 nor 1"):
        read(studies_csv("study_uid", {"a": (0, 0, 0, 0, 0, 7)}))
    with pytest.raises(UsageError, match="rows 2 and 3 are of the same name"):
        read(studies_csv("study_uid", {"a": (0,) * 6, " a": (0,) * 6}))
    with pytest.raises(UsageError, match="holds no labels"):
        read(studies_csv("study_uid", {}))


def test_a_contradiction_is_refused_as_that_of_a_slice_is(read):
    """`any` = 0 beside a positive subtype: read_labels refuses it, for studies it would be believed."""
    with pytest.raises(UsageError, match="any"):
        read(studies_csv("study_uid", {"a": (1, 0, 0, 0, 0, 0)}))


def test_a_row_without_a_name_is_refused(read):
    """An emptied name is nobody's; read_labels refuses a slice without its UID."""
    with pytest.raises(UsageError, match="labels"):
        read(studies_csv("PatientID", {" ": (1, 0, 0, 0, 0, 1)}))


@pytest.mark.parametrize("compressed", [False, True])
def test_labels_of_slices_are_still_read_as_such(tmp_path, compressed):
    """Long and wide, plain and compressed: what read_labels makes of them."""
    long = "ID,Label\n" + "".join(f"a.1_{label},{int(label in ('any', 'subdural'))}\n" for label in LABELS)
    wide = "image_id," + ",".join(LABELS) + "\na.1,0,0,0,0,1,1\na.2,0,0,0,0,0,0\n"
    for text in (long, wide):
        path = tmp_path / ("labels.csv.gz" if compressed else "labels.csv")
        path.write_bytes(zlib.compress(text.encode(), wbits=31) if compressed else text.encode())
        found = read_any_labels(path)
        assert isinstance(found, SliceLabels)
        pd.testing.assert_frame_equal(found.table, read_labels(path).table)


@pytest.mark.parametrize("name", ["study_uid", "StudyInstanceUID", "PatientID"])
def test_slices_that_name_their_study_are_slices(read, name):
    """A SOP Instance UID makes a row a slice's; read_labels takes such tables, RSNA's with metadata are some."""
    labels = read(studies_csv(f"{name},sop_uid", {"a,a.1": (0, 0, 0, 0, 1, 1), "a,a.2": (0,) * 6}))
    assert isinstance(labels, SliceLabels)
    assert list(labels.table.index) == ["a.1", "a.2"]


def message(reader, path) -> str:
    with pytest.raises(UsageError) as refused:
        reader(path)
    return str(refused.value)


DAMAGED = [
    ("empty.csv", b""),
    ("bytes.csv", bytes(range(256))),
    ("cut.csv.gz", zlib.compress(b"study_uid,any\n" + bytes(range(60, 90)) * 9, wbits=31)[:30]),
    ("none.csv.bz2", b"no archive"),
    ("none.csv.zip", b"no archive"),
    ("none.csv.xz", b"no archive"),
    ("cut.csv.xz", lzma.compress(b"study_uid,any\n" * 99)[:40] + b"\xff" * 40),
    ("none.csv.gz", zlib.compress(b"", wbits=31)[:10] + b"\xff" * 50),
    ("nothing.csv", b"a,b\n1,2\n"),
    ("long.csv", b"study_uid," + ",".join(SUBTYPES).encode() + b"\na,0,0,0,0,0,0\n"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_that_is_none_is_refused_as_read_labels_does(tmp_path, name, content):
    """Unreadable, cut short, of other columns: the same words, whatever looked at it first."""
    (tmp_path / name).write_bytes(content)
    if name == "long.csv":
        assert "more fields than the header" in message(read_any_labels, tmp_path / name)
    else:
        assert message(read_any_labels, tmp_path / name) == message(read_labels, tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """Read or not, the remedy is the same: the path that cannot be read."""
    assert message(read_any_labels, tmp_path / "absent.csv") == message(read_labels, tmp_path / "absent.csv")


def test_rsnas_studies(shared_data):
    """The 19,530 training studies of the challenge: read whole, positives as pandas counts them."""
    path = shared_data / "rsna_tables" / "stage1train_studies.csv.gz"
    labels, raw = read_any_labels(path), pd.read_csv(path)
    assert isinstance(labels, StudyLabels)
    assert len(labels.table) == 19_530
    assert list(labels.table.index) == raw["StudyInstanceUID"].tolist()
    assert (labels.table == raw.set_index("StudyInstanceUID")[list(LABELS)]).all(axis=None)
    assert labels.table.max(axis=1).sum() == raw["any"].sum() > 0


def test_rsnas_slices_with_metadata(shared_data):
    """39,409 test slices whose table names patient and study too: labels of slices, as read_labels has them."""
    labels = read_any_labels(shared_data / "rsna_tables" / "stage1test_slices.csv.gz")
    assert isinstance(labels, SliceLabels)
    assert len(labels.table) == 39_409

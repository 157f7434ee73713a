"""The label files, and the folds that keep patients apart."""

from __future__ import annotations

import gzip
import lzma
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq import UsageError
from ich_seq.labels import LABELS, SUBTYPES, assign_folds, read_labels

PREVALENCE = dict(zip(LABELS, (0.00409, 0.04830, 0.03525, 0.04764, 0.06303, 0.1440), strict=True))
"""Slice prevalence of RSNA 2019, stage 1."""

# Real ids hold underscores and dots; commas and quotes would be a matter of the CSV reader, not of ours.
ids = st.text(alphabet="ID_.0123456789abcdef", min_size=1, max_size=20).filter(lambda s: not s.endswith(".dcm"))
bits = st.tuples(*[st.integers(0, 1)] * len(SUBTYPES))
tables = st.dictionaries(ids, bits, min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


def put(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def six(values: tuple[int, ...]) -> list[int]:
    return [*values, max(values)]


def long_rows(table: dict[str, tuple[int, ...]]) -> list[str]:
    return [f"{sop}_{label},{v}" for sop, values in table.items() for label, v in zip(LABELS, six(values), strict=True)]


def long_text(rows: list[str]) -> str:
    return "\n".join(["ID,Label", *rows]) + "\n"


def wide_text(rows: list[str], columns: tuple[str, ...] = ("image_id", *LABELS)) -> str:
    return "\n".join([",".join(columns), *rows]) + "\n"


ONE = {"ID_a": (0, 1, 0, 0, 0)}


@given(table=tables, data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_long_file_in_any_row_order_with_repeats_reads_back(folder, table, data):
    """The long form is read whatever the order of its rows, and every repeated row is counted once."""
    rows = long_rows(table)
    repeated = data.draw(st.lists(st.sampled_from(rows), max_size=10))
    shuffled = data.draw(st.permutations(rows + repeated))
    read = read_labels(put(folder / "long.csv", long_text(list(shuffled))))
    first_seen = list(dict.fromkeys(row.rsplit("_", 1)[0] for row in shuffled))
    assert read.table.index.tolist() == first_seen
    assert read.table.columns.tolist() == list(LABELS)
    assert read.table.to_numpy().tolist() == [six(table[sop]) for sop in first_seen]
    assert read.table.to_numpy().dtype == np.uint8
    assert read.duplicate_rows == len(repeated)


@given(table=tables, data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_wide_file_in_any_column_order_reads_back(folder, table, data):
    """The wide form is read by column name, with or without `any`, with or without ".dcm", repeats counted."""
    name = data.draw(st.sampled_from(["image_id", "ID", "Image", "image", "sop_uid", "SOPInstanceUID"]))
    labels = data.draw(st.sampled_from([LABELS, SUBTYPES]))
    columns = tuple(data.draw(st.permutations([name, *labels, "hospital"])))
    suffix = data.draw(st.sampled_from(["", ".dcm"]))
    order = list(table) + data.draw(st.lists(st.sampled_from(list(table)), max_size=5))
    rows = []
    for number, sop in enumerate(order):
        cell = {
            name: sop + suffix,
            "hospital": f"h{number}",
            **dict(zip(LABELS, map(str, six(table[sop])), strict=True)),
        }
        rows.append(",".join(cell[c] for c in columns))
    read = read_labels(put(folder / "wide.csv", wide_text(rows, columns)))
    assert read.table.index.tolist() == list(table)
    assert read.table.to_numpy().tolist() == [six(v) for v in table.values()]
    assert read.duplicate_rows == len(order) - len(table)


def test_both_forms_of_the_same_labels_read_equal(tmp_path):
    """The two forms of one table give one and the same result, so a user may convert freely."""
    table = {"ID_a_1": (0, 0, 0, 0, 0), "1.2.840.7": (1, 0, 0, 0, 1)}
    wide = [",".join([sop, *map(str, six(values))]) for sop, values in table.items()]
    a = read_labels(put(tmp_path / "a.csv", long_text(long_rows(table))))
    b = read_labels(put(tmp_path / "b.csv", wide_text(wide)))
    pd.testing.assert_frame_equal(a.table, b.table)


def test_targets_come_in_the_order_asked_for(tmp_path):
    """Labels are looked up by SOP Instance UID, in the caller's order; an unknown one is a KeyError."""
    read = read_labels(put(tmp_path / "a.csv", long_text(long_rows({"a": (1, 0, 0, 0, 0), "b": (0, 0, 0, 0, 1)}))))
    assert read.targets(["b", "a", "b"]).tolist() == [[0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]]
    assert read.targets(["b"]).dtype == np.uint8
    with pytest.raises(KeyError, match="nobody"):
        read.targets(["a", "nobody"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "\ufeff" + text, id="byte-order-mark"),
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="windows-line-ends"),
        pytest.param(lambda text: text.replace("ID,Label", "ID, Label "), id="blanks-in-header"),
        pytest.param(lambda text: text.replace(",0", ", 0 ").replace(",1", ",\t1"), id="blanks-around-labels"),
        pytest.param(lambda text: text.replace(",0", ",0.0").replace(",1", ",1.0"), id="floats"),
        pytest.param(lambda text: text.replace("\n", "\n\n"), id="empty-lines"),
        pytest.param(lambda text: text.replace(",", " ,").replace("\nID_", "\n ID_"), id="blanks-around-ids"),
        pytest.param(
            lambda text: "".join(f'"{a}","{b}"\n' for a, b in (r.split(",") for r in text.split())), id="quotes"
        ),
    ],
)
def test_what_spreadsheets_do_to_a_file_does_not_change_it(tmp_path, change):
    """A file saved by another program, with the same content, reads as the same table."""
    text = long_text(long_rows(ONE))
    assert change(text) != text
    plain = read_labels(put(tmp_path / "plain.csv", text))
    pd.testing.assert_frame_equal(read_labels(put(tmp_path / "changed.csv", change(text))).table, plain.table)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_compressed_file_reads_as_the_plain_one(tmp_path, suffix, compress):
    """Compressed label files need no unpacking."""
    text = "\ufeff" + long_text(long_rows(ONE))
    plain = read_labels(put(tmp_path / "a.csv", text))
    packed = tmp_path / f"a.csv{suffix}"
    packed.write_bytes(compress(text.encode()))
    pd.testing.assert_frame_equal(read_labels(packed).table, plain.table)


WIDE = "ID_good,0,0,0,0,0,0"
LONG = long_rows({"ID_good": (0, 0, 0, 0, 0)})


@pytest.mark.parametrize(
    ("text", "offender", "reason"),
    [
        pytest.param(long_text([*long_rows(ONE), "ID_a_any,0"]), "ID_a_any", "disagree", id="long-rows-disagree"),
        pytest.param(
            wide_text([WIDE, "ID_bad,0,1,0,0,0,1", "ID_bad,0,0,0,0,0,0"]), "ID_bad", "disagree", id="wide-rows-disagree"
        ),
        pytest.param(
            long_text([*LONG, "ID_bad_epidurall,0"]), "ID_bad_epidurall", "unknown subtype", id="unknown-subtype"
        ),
        pytest.param(long_text([*LONG, "ID_bad_any,2"]), "ID_bad_any", "neither 0 nor 1", id="two"),
        pytest.param(long_text([*LONG, "ID_bad_any,-1"]), "ID_bad_any", "neither 0 nor 1", id="minus-one"),
        pytest.param(long_text([*LONG, "ID_bad_any,0.5"]), "ID_bad_any", "neither 0 nor 1", id="probability"),
        pytest.param(long_text([*LONG, "ID_bad_any,"]), "ID_bad_any", "neither 0 nor 1", id="empty-label"),
        pytest.param(long_text([*LONG, "ID_bad_any"]), "ID_bad_any", "neither 0 nor 1", id="row-cut-short"),
        pytest.param(wide_text([WIDE, "ID_bad,0,nan,0,0,0,0"]), "ID_bad", "neither 0 nor 1", id="wide-nan"),
        pytest.param(wide_text([WIDE, "ID_bad,0,0,0,0,0,7"]), "ID_bad", "neither 0 nor 1", id="wide-any-seven"),
        pytest.param(long_text([*LONG, "ID_bad_any,0"]), "ID_bad", "fewer than six", id="one-label-only"),
        pytest.param(
            long_text([*LONG, *long_rows({"ID_bad": (1, 0, 0, 0, 0)})[:-1]]), "ID_bad", "fewer than six", id="no-any"
        ),
        pytest.param(wide_text([WIDE, "ID_bad,0,0,1,0,0,0"]), "ID_bad", "'any' is 0", id="wide-any-0-beside-positive"),
        pytest.param(
            long_text([*LONG, *(r.replace("any,1", "any,0") for r in long_rows({"ID_bad": (0, 0, 0, 0, 1)}))]),
            "ID_bad",
            "'any' is 0",
            id="long-any-0-beside-positive",
        ),
    ],
)
def test_a_bad_row_is_refused_by_name(tmp_path, text, offender, reason):
    """Labels that cannot be meant are refused; the message names file, reason and bad row, and no good row."""
    path = put(tmp_path / "labels.csv", text)
    with pytest.raises(UsageError) as refusal:
        read_labels(path)
    for part in (str(path), reason, offender):
        assert part in str(refusal.value)
    assert "ID_good" not in str(refusal.value)


def test_many_offenders_are_counted_and_only_some_named(tmp_path):
    """A file that is bad throughout gives one short message, with the true number of bad rows."""
    with pytest.raises(UsageError, match=r"ID_0, ID_1, ID_2 and 997 more") as refusal:
        read_labels(put(tmp_path / "a.csv", wide_text([f"ID_{i},9,0,0,0,0,0" for i in range(1000)])))
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "Cannot read", id="empty"),
        pytest.param("file,diagnosis\nx,1\n", "file, diagnosis", id="other-columns"),
        pytest.param(wide_text(["x,0,0,0,0,0"], ("who", *SUBTYPES)), "SOPInstanceUID", id="no-id-column"),
        pytest.param("ID,Label\nabc,0\n", "'abc'", id="ids-without-subtype"),
        pytest.param("ID,Label\n", "labels.csv", id="long-header-only"),
        pytest.param(wide_text([]), "labels.csv", id="wide-header-only"),
        pytest.param(wide_text([f"{i},0,0,0,0,0,0,0" for i in "ab"]), "labels.csv", id="more-fields-than-columns"),
        pytest.param(wide_text([",0,0,0,0,0,0"]), "labels.csv", id="wide-id-empty"),
        pytest.param(long_text([r.removeprefix("ID_a") for r in long_rows(ONE)]), "labels.csv", id="long-id-empty"),
    ],
)
def test_a_file_without_usable_labels_is_refused(tmp_path, text, words):
    """A file that holds no labels we can attach to a slice is a UsageError that says what was found."""
    with pytest.raises(UsageError) as refusal:
        read_labels(put(tmp_path / "labels.csv", text))
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz", "labels.csv.xz", "labels.csv.zip"])
def test_a_damaged_or_absent_file_is_refused_by_name(tmp_path, name):
    """What cannot be unpacked (a download cut short), decoded or found is a UsageError with the file's name."""
    path = tmp_path / name
    with pytest.raises(UsageError, match=name):
        read_labels(path)
    # Random labels, else the archive is so small that half of it still holds the header only.
    text = long_text([f"ID_{i:x}_any,{i % 2}" for i in np.random.default_rng(0).integers(2**32, size=5000)]).encode()
    whole = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, lambda b: b"\xff\xfe\xfa" + b)(text)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=name):
        read_labels(path)


@pytest.mark.slow
def test_the_real_training_labels_have_the_published_prevalences(shared_data):
    """All 674,126 slices of RSNA stage 1 are read and hold the published share of each label."""
    read = read_labels(shared_data / "rsna_tables" / "stage1train_labels.csv.gz")
    assert len(read.table) == 674_126
    assert read.duplicate_rows == 0
    assert read.table.index.is_unique
    assert read.table.mean().to_dict() == pytest.approx(PREVALENCE, abs=5e-4)


def test_the_challenge_file_reads_back_without_its_repeated_rows(shared_data, tmp_path):
    """60,000 real slices in the challenge's long form, 4 of them twice as there, read back with 24 rows counted."""
    source = shared_data / "rsna_tables" / "stage1train_labels.csv.gz"
    real = pd.read_csv(source, nrows=60_000).set_index("image_id")[list(LABELS)]
    flat = real.stack().reset_index()
    flat = pd.DataFrame({"ID": flat.iloc[:, 0] + "_" + flat.iloc[:, 1], "Label": flat.iloc[:, 2]})
    pieces, start = [], 0
    for at in (56_346, 171_830, 305_316, 342_480):  # where the file repeats an image, give or take its length
        pieces += [flat[start:at], flat[at - 6 : at]]
        start = at
    path = tmp_path / "stage_1_train.csv"
    pd.concat([*pieces, flat[start:]]).to_csv(path, index=False)
    read = read_labels(path)
    assert read.duplicate_rows == 24
    assert read.table.index.tolist() == real.index.tolist()
    assert (read.table.to_numpy() == real.to_numpy()).all()


def test_a_file_from_the_wild_agrees_with_the_other_form(shared_data, tmp_path):
    """Slices that a long file of another project and our wide list both hold carry the same labels."""
    folder = shared_data / "rsna_single_slices"
    kaggle = read_labels(folder / "kaggle_labels_yebiny.csv").table
    lines = (folder / "labels.csv").read_text().splitlines()
    labelled = [line for line in lines if ",," not in line]  # of five slices nobody knows the labels
    assert len(labelled) == len(lines) - 5
    ours = read_labels(put(tmp_path / "labels.csv", "\n".join(labelled))).table
    both = kaggle.index.intersection(ours.index)
    assert len(both) == len(kaggle) == 5
    assert (kaggle.loc[both] == ours.loc[both]).all(axis=None)
    with pytest.raises(UsageError, match=r"ID_7f874d475, ID_7f87625d2, ID_b7425a957 and 2 more"):
        read_labels(folder / "labels.csv")


# ---- folds ----

studies = st.lists(st.tuples(st.integers(0, 25), st.tuples(*[st.integers(0, 1)] * 6)), min_size=1, max_size=60)


def arrays(rows: list[tuple[int, tuple[int, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([f"p{patient}" for patient, _ in rows]), np.array([t for _, t in rows], np.uint8)


def strata(patients: np.ndarray, targets: np.ndarray) -> dict[str, int | None]:
    """Each patient's rarest positive label, the slow way; rarity counts patients, ties go to the first label."""
    held: dict[str, set[int]] = defaultdict(set)
    for patient, row in zip(patients.tolist(), targets.tolist(), strict=True):
        held[patient] |= {k for k, v in enumerate(row) if v}
    count = Counter(k for labels in held.values() for k in labels)
    return {p: min(labels, key=lambda k: (count[k], k), default=None) for p, labels in held.items()}


@given(rows=studies, n_folds=st.integers(2, 6), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_a_patient_is_never_in_two_folds_and_strata_are_spread_evenly(rows, n_folds, seed):
    """Every patient has one fold; each stratum's patients, and all patients, differ by at most one between folds."""
    patients, targets = arrays(rows)
    if len(set(patients)) < n_folds:
        with pytest.raises(UsageError, match=str(n_folds)):
            assign_folds(patients, targets, n_folds=n_folds, seed=seed)
        return
    folds = assign_folds(patients, targets, n_folds=n_folds, seed=seed)
    pairs = set(zip(patients.tolist(), folds.tolist(), strict=True))
    assert len(pairs) == len(set(patients))
    stratum = strata(patients, targets)
    for chosen in ({*stratum.values()}, *({s} for s in set(stratum.values()))):
        sizes = Counter(fold for patient, fold in pairs if stratum[patient] in chosen)
        spread = [sizes[f] for f in range(n_folds)]
        assert max(spread) - min(spread) <= 1
        assert sum(spread) == sum(s in chosen for s in stratum.values())


@given(rows=studies, data=st.data())
@settings(deadline=None, max_examples=60)
def test_folds_do_not_depend_on_the_order_of_the_studies(rows, data):
    """Reading the same studies in another order puts each in the same fold, else features would leak on a re-run."""
    patients, targets = arrays(rows)
    n_folds = data.draw(st.integers(1, len(set(patients))))
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    folds = assign_folds(patients, targets, n_folds=n_folds, seed=4)
    shuffled = assign_folds(patients[order], targets[order], n_folds=n_folds, seed=4)
    assert shuffled.tolist() == folds[order].tolist()


def test_the_seed_decides_the_folds():
    """One seed gives one assignment, another seed another; without that, repeats would not be repeats."""
    patients, targets = np.array([f"p{i}" for i in range(50)]), np.zeros((50, 6), np.uint8)
    one, again, other = (assign_folds(patients, targets, n_folds=5, seed=s) for s in (1, 1, 2))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()


def test_the_real_studies_are_folded_by_patient_and_evenly(shared_data):
    """On all 19,530 RSNA studies no patient straddles folds, and each label's share per fold is within a tenth."""
    table = pd.read_csv(shared_data / "rsna_tables" / "stage1train_studies.csv.gz")
    patients, targets = table["PatientID"].to_numpy(str), table[list(LABELS)].to_numpy(np.uint8)
    assert len(table) == 19_530
    of_patient = table.groupby("PatientID").size()
    assert len(of_patient) == 17_079
    assert int((of_patient > 1).sum()) == 1_536
    folds = pd.Series(assign_folds(patients, targets, n_folds=5, seed=0))
    assert folds.groupby(patients).nunique().max() == 1
    share = pd.DataFrame(targets).groupby(folds).mean().to_numpy()
    assert share.shape == (5, 6)
    assert np.abs(share / targets.mean(axis=0) - 1).max() < 0.1
    assert folds.value_counts().max() < 1.02 * len(table) / 5

"""What predict wrote, read back: beside the right labels, nothing lost uncounted, nonsense refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ich_seq import UsageError
from ich_seq.labels import LABELS, SliceLabels
from ich_seq.report import GEOMETRY_COLUMNS, PART_COLUMNS
from ich_seq.results import hold, read_results
from ich_seq.study_labels import StudyLabels

K = len(LABELS)
LENGTHS = {"s1": 3, "s2": 1, "s3": 4}
PATIENTS = {"s1": "1", "s2": "2", "s3": "1"}


def tables(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """slices.csv and studies.csv of three studies of two patients, as predict lays them out."""
    rng = np.random.default_rng(seed)
    slices = pd.DataFrame(
        [(uid, f"{uid}.{i}", 5.0 * i) for uid, n in LENGTHS.items() for i in range(n)],
        columns=["study_uid", "sop_uid", "position_mm"],
    )
    studies = pd.DataFrame({"study_uid": list(LENGTHS), "patient": list(PATIENTS.values()), "slices": LENGTHS.values()})
    for table in (slices, studies):
        for column in [*LABELS, *PART_COLUMNS]:
            table[column] = rng.random(len(table)).round(6)
    return slices, studies.assign(**dict.fromkeys(GEOMETRY_COLUMNS, 1))


def labels_of(sops: list[str], seed: int = 1) -> SliceLabels:
    """Random labels of these slices, in another order than theirs."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.integers(0, 2, (len(sops), K)).astype(np.uint8), index=sops, columns=list(LABELS))
    return SliceLabels(table.sample(frac=1, random_state=0), 0)


@pytest.fixture
def written(tmp_path):
    """A folder that holds the tables after `change` has had its way with them."""

    def write(change=lambda slices, studies: (slices, studies)):
        slices, studies = change(*tables())
        slices.to_csv(tmp_path / "slices.csv", index=False)
        if studies is not None:
            studies.to_csv(tmp_path / "studies.csv", index=False)
        return tmp_path

    return write


def test_each_row_stands_beside_its_own_label(written):
    """Whatever the order of either table: slices study by study feet to head, each with its labels and patient."""
    shuffled = written(lambda a, b: (a.sample(frac=1, random_state=3), b.sample(frac=1, random_state=4)))
    slices, studies = tables()
    labels = labels_of(slices["sop_uid"].tolist())
    held = hold(read_results(shuffled), labels)
    by_sop, by_uid = slices.set_index("sop_uid"), studies.set_index("study_uid")
    at = {tuple(row): sop for sop, row in zip(by_sop.index, by_sop[list(LABELS)].to_numpy(), strict=True)}
    sops = [at[tuple(row)] for row in held.predicted["blend"].slices]
    uids = list(dict.fromkeys(sop.split(".")[0] for sop in sops))
    assert sops == [f"{uid}.{i}" for uid in uids for i in range(LENGTHS[uid])]
    assert np.array_equal(held.truth.slices, labels.targets(sops))
    assert held.lengths.tolist() == [LENGTHS[uid] for uid in uids]
    assert held.truth.study_patients.tolist() == [PATIENTS[uid] for uid in uids]
    assert held.truth.slice_patients.tolist() == [PATIENTS[sop.split(".")[0]] for sop in sops]
    for name, prefix in (("blend", ""), ("cnn", "cnn_"), ("rnn", "rnn_")):
        columns = [prefix + label for label in LABELS]
        assert np.array_equal(held.predicted[name].slices, by_sop.loc[sops, columns].to_numpy())
        assert np.array_equal(held.predicted[name].studies, by_uid.loc[uids, columns].to_numpy())


def test_without_a_table_of_studies_a_study_is_its_likeliest_slice(written):
    """slices.csv by itself will do: patients are unknown then, and so is geometry."""
    held = hold(read_results(written(lambda a, _: (a, None))), labels_of(tables()[0]["sop_uid"].tolist()))
    rows = np.split(held.predicted["blend"].slices, np.cumsum(held.lengths)[:-1])
    assert np.array_equal(held.predicted["blend"].studies, [r.max(axis=0) for r in rows])
    assert held.geometry is None
    assert not held.by_patient
    assert held.truth.study_patients.tolist() == ["s1", "s2", "s3"]


def test_other_programs_tables_will_do(tmp_path):
    """Any table with study, slice and six columns; further sets of six are further predictors, broken ones are not."""
    slices = tables()[0].drop(columns=[*PART_COLUMNS, "position_mm"])
    for label in LABELS:
        slices[f"other_{label}"] = slices[label] / 2
    slices["half_any"] = 0.5
    slices.to_csv(tmp_path / "theirs.csv", index=False)
    held = hold(read_results(tmp_path / "theirs.csv"), labels_of(slices["sop_uid"].tolist()))
    assert list(held.predicted) == ["predicted", "other", "constant", "position"]


def test_studies_with_an_unlabelled_slice_are_left_out_and_everything_is_counted(written):
    """Predicted = judged + unlabelled + of studies left out; labels of slices never predicted are counted too."""
    slices, _ = tables()
    labels = labels_of([s for s in slices["sop_uid"] if s != "s3.2"] + ["lost.1", "lost.2"])
    held = hold(read_results(written()), labels)
    assert held.lengths.tolist() == [3, 1]
    assert held.flow == {
        "slices_labelled": 9,
        "slices_labelled_not_predicted": 2,
        "slices_predicted": 8,
        "slices_unlabelled": 1,
        "slices_of_studies_left_out": 3,
        "slices_judged": 4,
        "studies_predicted": 3,
        "studies_left_out": 1,
        "studies_judged": 2,
    }


def test_baselines_never_saw_the_patient(written):
    """A patient's prevalence and positions are those of the others: with two patients, of the other one."""
    held = hold(read_results(written()), labels_of(tables()[0]["sop_uid"].tolist()))
    others = held.truth.slice_patients != "2"
    (row,) = held.predicted["constant"].slices[~others]
    assert row == pytest.approx(held.truth.slices[others].mean(axis=0))
    changed = labels_of(tables()[0]["sop_uid"].tolist())
    changed.table.loc["s2.0"] = 1 - changed.table.loc["s2.0"]
    again = hold(read_results(written()), changed)
    for name in ("constant", "position"):
        assert np.array_equal(again.predicted[name].slices[~others], held.predicted[name].slices[~others])
        assert not np.array_equal(again.predicted[name].slices[others], held.predicted[name].slices[others])


def one_patient(slices, studies):
    return slices, studies.assign(patient="1")


def test_one_patient_has_no_baselines(written):
    """There is nobody else to learn from; the figures come without."""
    held = hold(read_results(written(one_patient)), labels_of(tables()[0]["sop_uid"].tolist()))
    assert list(held.predicted) == ["blend", "cnn", "rnn"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (a.drop(columns="sop_uid"), b), "lacks sop_uid"),
        (lambda a, b: (a.drop(columns="epidural"), b), "lacks epidural"),
        (lambda a, b: (a, b.drop(columns="any")), "lacks any"),
        (lambda a, b: (a.iloc[:0], b), "no predictions"),
        (lambda a, b: (pd.concat([a, a.iloc[:1]]), b), "more than one row for s1.0"),
        (lambda a, b: (a, pd.concat([b, b.iloc[:1]])), "more than one row for s1"),
        (lambda a, b: (a, b.iloc[1:]), "no row for s1"),
        (lambda a, b: (a[a["study_uid"] != "s3"], b), "no slice of s3"),
        (lambda a, b: (a.rename(columns=lambda c: c.replace("cnn_", "position_")), b), "rename the six"),
        (lambda a, b: (a, b.drop(columns="rnn_any")), "lacks six columns such as rnn_any"),
        (lambda a, b: (a.assign(any=1.5), b), "no probability in row 2"),
        (lambda a, b: (a.assign(cnn_any="much"), b), "no probability in row 2"),
        (lambda a, b: (a, b.assign(subdural=np.nan)), "no probability in row 2"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(written, change, words):
    """Each refusal names the file, the row or column, and says what to do."""
    with pytest.raises(UsageError, match=words) as refused:
        read_results(written(change))
    assert ".csv" in str(refused.value)


def test_tables_of_another_name_stand_by_themselves(written):
    """A second table beside predict's own is not given the studies of the first."""
    root = written()
    (root / "slices.csv").rename(root / "mine.csv")
    assert read_results(root / "mine.csv").studies is None


def test_patients_without_a_name_are_patients_of_their_own(written):
    """An emptied cell joins nobody with nobody; if all are empty, intervals go by study."""
    labels = labels_of(tables()[0]["sop_uid"].tolist())
    held = hold(read_results(written(lambda a, b: (a, b.assign(patient=["", " ", "7"])))), labels)
    assert held.truth.study_patients.tolist() == ["study s1", "study s2", "7"]
    held = hold(read_results(written(lambda a, b: (a, b.assign(patient="")))), labels)
    assert not held.by_patient
    assert held.truth.study_patients.tolist() == ["s1", "s2", "s3"]


def test_unknown_positions_and_geometry_cost_nothing_else(written):
    """An empty position or tilt: rows stand for positions in that study, and all studies are judged."""
    labels = labels_of(tables()[0]["sop_uid"].tolist())
    change = lambda a, b: (a.astype({"position_mm": object}).replace({"position_mm": {5.0: ""}}), b.assign(tilt_deg=""))  # noqa: E731
    held = hold(read_results(written(change)), labels)
    assert held.lengths.tolist() == [3, 1, 4]
    assert np.isfinite(held.predicted["position"].slices).all()
    assert held.geometry is not None
    assert held.geometry["tilt_deg"].isna().all()


def test_files_that_are_not_there_or_no_tables_are_refused(tmp_path):
    """An absent file, an empty one and one that is no text."""
    for name, content in (("empty.csv", b""), ("bytes.csv", bytes(range(256)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name):
            read_results(tmp_path / name)
    with pytest.raises(UsageError, match="Cannot read"):
        read_results(tmp_path / "absent.csv")


def test_labels_of_other_slices_are_refused(written):
    """Not one study is labelled: most likely the wrong file, and the remedy says which IDs are meant."""
    with pytest.raises(UsageError, match="SOP Instance UIDs"):
        hold(read_results(written()), labels_of(["x", "y"]))


def labels_of_studies(names: list[str], seed: int = 2) -> StudyLabels:
    """Random labels of studies, no two alike."""
    numbers = np.random.default_rng(seed).permutation(2**K)[: len(names)]
    bits = (numbers[:, None] >> np.arange(K)) & 1
    return StudyLabels(pd.DataFrame(bits.astype(np.uint8), index=pd.Index(names, name="name"), columns=list(LABELS)))


def named(*patient_ids: str):
    """What gives the three studies these Patient IDs."""
    return lambda a, b: (a, b.assign(patient_id=patient_ids))


def test_studies_are_found_by_their_uid(written):
    """Whatever the order of either table, each study stands beside its own label; of slices there is no truth."""
    shuffled = written(lambda a, b: (a.sample(frac=1, random_state=3), b.sample(frac=1, random_state=4)))
    labels = labels_of_studies(["s3", "s9", "s1", "s2"])
    held = hold(read_results(shuffled), labels)
    slices, studies = (table.set_index("study_uid") for table in tables())
    assert held.levels == ("studies",)
    assert sorted(held.uids) == ["s1", "s2", "s3"]
    assert np.array_equal(held.truth.studies, labels.table.loc[list(held.uids)].to_numpy())
    assert held.truth.slices.shape == (0, K)
    assert held.truth.slice_patients.shape == (0,)
    assert held.truth.study_patients.tolist() == [PATIENTS[uid] for uid in held.uids]
    assert held.lengths.tolist() == [LENGTHS[uid] for uid in held.uids]
    assert held.sop_uids == tuple(f"{uid}.{i}" for uid in held.uids for i in range(LENGTHS[uid]))
    assert held.positions_mm.tolist() == [5.0 * i for uid in held.uids for i in range(LENGTHS[uid])]
    assert held.geometry.index.tolist() == list(held.uids)
    for name, prefix in (("blend", ""), ("cnn", "cnn_"), ("rnn", "rnn_")):
        columns = [prefix + label for label in LABELS]
        assert np.array_equal(held.predicted[name].studies, studies.loc[list(held.uids), columns].to_numpy())
        assert np.array_equal(
            held.predicted[name].slices,
            np.concatenate([slices.loc[[uid], columns].to_numpy() for uid in held.uids]),
        )


def test_studies_are_found_by_their_patient(written):
    """Where no UID is named the Patient ID of studies.csv tells, numbers and blanks as they are written."""
    labels = labels_of_studies(["007", "CQ500-CT-1", "x"])
    held = hold(read_results(written(named(" CQ500-CT-1", "007", "7"))), labels)
    assert held.uids == ("s1", "s2")
    assert np.array_equal(held.truth.studies, labels.table.loc[["CQ500-CT-1", "007"]].to_numpy())


def test_the_uid_goes_before_the_patient(written):
    """A study of which both are named has the label of its UID."""
    labels = labels_of_studies(["p1", "s1"])
    held = hold(read_results(written(named("p1", "p2", "p3"))), labels)
    assert held.uids == ("s1",)
    assert np.array_equal(held.truth.studies, labels.table.loc[["s1"]].to_numpy())


def test_a_patient_of_two_studies_is_not_guessed(written):
    """Which of the two is meant nobody knows: both are left out and counted, the UID of one still finds it."""
    held = hold(read_results(written(named("p", "q", "p"))), labels_of_studies(["p", "q"]))
    assert held.uids == ("s2",)
    assert held.flow["studies_left_out"] == held.flow["studies_of_shared_patient_ids"] == 2
    assert held.flow["studies_labelled_not_predicted"] == 0
    with_uid = hold(read_results(written(named("p", "q", "p"))), labels_of_studies(["p", "q", "s3"]))
    assert with_uid.uids == ("s2", "s3")
    assert with_uid.flow["studies_left_out"] == 1


@pytest.mark.parametrize("known", [["s1"], ["s2", "s3"], ["s1", "else", "other"], ["p2", "s1"], ["s1", "p2", "p3"]])
def test_the_flow_of_studies_adds_up(written, known):
    """Predicted = judged + left out, labelled = judged + not predicted; nothing is said of slices."""
    held = hold(read_results(written(named("p1", "p2", "p3"))), labels_of_studies(known))
    judged = [uid for uid in LENGTHS if uid in known or f"p{uid[1:]}" in known]
    assert held.uids == tuple(judged)
    assert held.flow == {
        "studies_labelled": len(known),
        "studies_labelled_not_predicted": len(known) - len(judged),
        "studies_predicted": 3,
        "studies_of_shared_patient_ids": 0,
        "studies_left_out": 3 - len(judged),
        "studies_judged": len(judged),
    }
    assert held.lengths.tolist() == [LENGTHS[uid] for uid in judged]
    assert len(held.sop_uids) == len(held.positions_mm) == held.lengths.sum()


@pytest.mark.parametrize("change", [lambda a, b: (a, b), lambda a, _: (a, None), named("p1", "p2", "p3")])
def test_labels_of_other_studies_are_refused(written, change):
    """Not one is found: the remedy names what writes Patient IDs."""
    with pytest.raises(UsageError, match="--phi"):
        hold(read_results(written(change)), labels_of_studies(["1.2.3", "CQ500-CT-0"]))


def test_unnamed_patients_have_nobodys_label(written):
    """Emptied Patient IDs do not stand for one another."""
    held = hold(read_results(written(named("", "", "p3"))), labels_of_studies(["p3", "p4"]))
    assert held.uids == ("s3",)


def test_a_label_is_of_one_study_only(written):
    """A Patient ID may look like another study's UID: a label that has found its study finds no other."""
    held = hold(read_results(written(named("p1", "s1", "p3"))), labels_of_studies(["s1"]))
    assert held.uids == ("s1",)
    assert held.flow["studies_labelled_not_predicted"] == 0


def test_the_constant_of_studies_never_saw_the_patient(written):
    """It says of each patient's studies the prevalence among the others'; no position is known to go by."""
    held = hold(read_results(written()), labels_of_studies(list(LENGTHS)))
    assert list(held.predicted) == ["blend", "cnn", "rnn", "constant"]
    for uid, said in zip(held.uids, held.predicted["constant"].studies, strict=True):
        others = [i for i, other in enumerate(held.uids) if PATIENTS[other] != PATIENTS[uid]]
        assert said == pytest.approx(held.truth.studies[others].mean(axis=0))
    assert list(hold(read_results(written(one_patient)), labels_of_studies(list(LENGTHS))).predicted) == [
        "blend",
        "cnn",
        "rnn",
    ]

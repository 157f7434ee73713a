"""The commands with an archive: results as of a folder, exit codes, what is left behind, and results sent back."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from io import BytesIO
from pathlib import Path

import highdicom as hd
import pytest
from archives import forget_the_user, free_port, orthanc, put, serving
from attacks.tiny_bundle import write_tiny_bundle
from attacks.tiny_studies import tiny_study
from click.testing import CliRunner
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, config, dcmread

from ich_seq import UsageError, extract_features, predict
from ich_seq.archive import TOKEN
from ich_seq.cli import cli
from ich_seq.config import Config
from ich_seq.dicomweb import FETCHED
from ich_seq.files import short_hash
from ich_seq.phantom import write_study
from ich_seq.prediction import PredictionSummary
from ich_seq.sources import ArchivedStudies
from ich_seq.studies import Counts
from ich_seq.study_pages import study_page

TABLES = ("studies.csv", "slices.csv", "submission.csv")
SETTINGS = {"slices": {"size": 32}, "encoder": {"arch": "test_convnext", "weights": "random"}}
STUDIES = 3


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """The same for whoever runs the tests."""
    forget_the_user(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of random weights that looks at all it is given."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def studies():
    """Phantom studies of a few slices, one of them of one slice."""
    return [tiny_study(index, seed=0) for index in range(STUDIES)]


@pytest.fixture(scope="module")
def folder(studies, tmp_path_factory):
    """The studies as files."""
    root = tmp_path_factory.mktemp("dicom")
    for study in studies:
        write_study(study, root)
    return root


@pytest.fixture(scope="module")
def pacs(folder, tmp_path_factory):
    """An archive that holds the studies; the URL of its DICOMweb service."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as url:
        put(url, *sorted(folder.iterdir()))
        yield url


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def named(studies):
    return [word for study in studies for word in ("--study", study.study_uid)]


def predicted(bundle, out, *arguments):
    return run("predict", *arguments, "--bundle", bundle, "--out", out, "--device", "cpu", "--workers", 0, "--quiet")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_archive_gives_what_a_folder_gives(pacs, folder, studies, bundle, tmp_path):
    """Tables byte for byte, and nothing of the files stays behind."""
    asked = "--dicomweb", pacs, *named(studies), "--no-report"
    ends = predicted(bundle, tmp_path / "web", *asked), predicted(bundle, tmp_path / "folder", folder, "--no-report")
    assert [end.exit_code for end in ends] == [0, 0], ends[0].output
    assert ends[0].stdout == ends[1].stdout.replace("/folder", "/web")
    for name in TABLES:
        assert (tmp_path / "web" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    assert len(rows_of(tmp_path / "web" / "studies.csv")) == STUDIES
    assert {path.name for path in (tmp_path / "web").iterdir()} == {*TABLES, "rejected.csv", "run.json", ".lock"}


def test_the_page_of_a_fetched_study_has_its_pictures(pacs, folder, studies, bundle, tmp_path):
    """The files are there until it is drawn: it is the page that a folder gives."""
    (tmp_path / "in").mkdir()
    for sop in studies[1].sop_uids:
        shutil.copy(folder / f"{sop}.dcm", tmp_path / "in")
    ends = (
        predicted(bundle, tmp_path / "web", "--dicomweb", pacs, *named(studies[1:2])),
        predicted(bundle, tmp_path / "folder", tmp_path / "in"),
    )
    assert [end.exit_code for end in ends] == [0, 0], ends[0].output
    page = study_page(studies[1].study_uid)
    assert (tmp_path / "web" / page).read_bytes() == (tmp_path / "folder" / page).read_bytes()
    assert b"<img" in (tmp_path / "web" / page).read_bytes()


def test_a_study_that_the_archive_does_not_have_is_listed_and_counted(pacs, studies, bundle, tmp_path):
    """Exit code 3, a row with its UID, and the other study predicted."""
    end = predicted(
        bundle, tmp_path / "out", "--dicomweb", pacs, *named(studies[:1]), "--study", "1.2.999", "--json", "--no-report"
    )
    assert end.exit_code == 3
    (row,) = rows_of(tmp_path / "out" / "rejected.csv")
    assert (row["fate"], row["reason"], row["study_uid"]) == ("rejected", "not_fetched", "1.2.999")
    assert row["file"] == short_hash(short_hash("1.2.999"))
    said = json.loads(end.stdout)
    assert (said["studies"], said["files"]) == (1, said["used"] + 1)
    assert said["reasons"] == {"not_fetched": 1}


def extracted(out, *arguments):
    chosen = [word for name in ("slices.size=32", "encoder.weights=random") for word in ("--set", name)]
    return run("extract-features", *arguments, *chosen, "--out", out, "--device", "cpu", "--workers", 0, "--quiet")


@pytest.mark.parametrize("command", ["predict", "extract-features"])
def test_no_study_at_all_ends_with_6_and_says_why(command, bundle, tmp_path):
    """The archive has none of them, or there is none at this URL: rejected.csv has what the message says."""
    with serving(lambda request: request.say(404)) as (url, _):
        asked = "--dicomweb", url, "--study", "1.2.998", "--study", "1.2.999"
        out = tmp_path / "out"
        end = predicted(bundle, out, *asked) if command == "predict" else extracted(out, *asked)
    assert end.exit_code == 6, end.output
    rows = rows_of(out / "rejected.csv")
    assert sorted(row["study_uid"] for row in rows) == ["1.2.998", "1.2.999"]
    assert f"None of the studies was fetched; see {out / 'rejected.csv'}." in end.stderr
    for row in rows:
        assert "does not have it (HTTP 404)" in row["detail"]
        assert f"{row['study_uid']}: {row['detail']}" in end.stderr


def test_of_many_studies_that_an_archive_does_not_have_the_first_are_told(pacs, bundle, tmp_path):
    """By a real one; rejected.csv has all of them."""
    asked = [word for number in range(5) for word in ("--study", f"1.2.99.{number}")]
    end = predicted(bundle, tmp_path / "out", "--dicomweb", pacs, *asked)
    assert end.exit_code == 6
    assert end.stderr.count("does not have it (HTTP 404)") == 3
    assert "and 2 more" in end.stderr
    assert len(rows_of(tmp_path / "out" / "rejected.csv")) == 5


def test_a_study_that_came_and_is_no_ct_ends_with_4(bundle, tmp_path, write_slice):
    """The archive has done its part; that another study was not to be had does not change that."""
    other = write_slice(tmp_path / "mr.dcm", StudyInstanceUID="1.2.997", Modality="MR").read_bytes()

    def answer(request):
        request.say_json([]) if request.is_search else (
            request.say_parts(other) if "1.2.997" in request.path else request.say(404)
        )

    with serving(answer) as (url, _):
        asked = "--dicomweb", url, "--study", "1.2.997", "--study", "1.2.998"
        end = predicted(bundle, tmp_path / "out", *asked)
    assert end.exit_code == 4, end.output
    assert "None of the 2 files is a usable CT slice (not_ct 1, not_fetched 1)" in end.stderr


def test_a_slice_of_another_study_is_counted_as_lost_and_never_predicted(folder, studies, bundle, tmp_path):
    """The study that was asked for has its own slices alone."""
    parts = [(folder / f"{sop}.dcm").read_bytes() for sop in (*studies[0].sop_uids, studies[2].sop_uids[0])]
    with serving(lambda r: r.say_json([]) if r.is_search else r.say_parts(*parts)) as (url, _):
        end = predicted(bundle, tmp_path / "out", "--dicomweb", url, *named(studies[:1]), "--phi", "--no-report")
    assert end.exit_code == 3
    (study,) = rows_of(tmp_path / "out" / "studies.csv")
    assert (study["study_uid"], study["slices"]) == (studies[0].study_uid, str(len(studies[0].sop_uids)))
    assert study["lost_slices"] == "1"
    (row,) = rows_of(tmp_path / "out" / "rejected.csv")
    assert row["reason"] == "wrong_study"
    assert row["file"].startswith(f"{short_hash(studies[0].study_uid)}/")


def test_an_archive_that_cannot_be_asked_ends_with_6(bundle, tmp_path):
    """It is neither the settings nor the disk."""
    end = predicted(bundle, tmp_path / "out", "--dicomweb", f"http://127.0.0.1:{free_port()}/x", "--study", "1.2.3")
    assert end.exit_code == 6
    assert "cannot be reached (Connection refused)" in end.stderr
    assert not (tmp_path / "out" / FETCHED).exists()


def test_a_token_is_in_no_output(folder, studies, bundle, tmp_path, monkeypatch):
    """Neither in a file, nor on the terminal, however the archive answers."""
    monkeypatch.setenv(TOKEN, "hush-hush")
    parts = [(folder / f"{sop}.dcm").read_bytes() for sop in studies[0].sop_uids]
    echo = lambda r: r.say(403, r.headers["Authorization"].encode(), Warning=r.headers["Authorization"])  # noqa: E731
    either = lambda r: r.say_parts(*parts) if f"/{studies[0].study_uid}" in r.path else echo(r)  # noqa: E731
    with serving(either) as (url, seen):
        end = predicted(bundle, tmp_path / "out", "--dicomweb", url, *named(studies[:2]), "--no-report")
    assert end.exit_code == 3
    assert {request.headers["Authorization"] for request in seen} == {"Bearer hush-hush"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"hush" not in written + end.output.encode()


def test_features_of_an_archive_are_those_of_a_folder_and_are_known_again(pacs, folder, studies, tmp_path):
    """What is in the store is not embedded anew; a study more is added."""
    how = {"config": Config.model_validate(SETTINGS), "device": "cpu", "workers": 0}
    uids = tuple(study.study_uid for study in studies)

    def stored(name):
        return {
            path.name: path for path in (tmp_path / name).glob("*.safetensors") if not path.name.startswith("network")
        }

    extract_features(ArchivedStudies(pacs, uids[:-1]), tmp_path / "web", **how)
    first = {name: path.stat().st_mtime_ns for name, path in stored("web").items()}
    extract_features(ArchivedStudies(pacs, uids), tmp_path / "web", **how)
    again = {name: path.stat().st_mtime_ns for name, path in stored("web").items()}
    assert len(again) == len(first) + 1 == STUDIES
    assert {name: again[name] for name in first} == first
    extract_features(folder, tmp_path / "folder", **how)
    assert sorted(p.read_bytes() for p in stored("web").values()) == sorted(
        p.read_bytes() for p in stored("folder").values()
    )


@pytest.mark.parametrize("command", ["predict", "extract-features"])
@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--study", "1.2.3"],
        ["--dicomweb", "https://pacs.example"],
        ["in", "--dicomweb", "https://pacs.example", "--study", "1.2.3"],
        ["in", "--study", "1.2.3"],
    ],
    ids=lambda given: " ".join(given) or "nothing",
)
def test_either_a_folder_or_an_archive_is_asked_for(command, given, tmp_path):
    """Not both, not neither, not half of one."""
    more = ["--bundle", "bundle"] if command == "predict" else []
    end = run(command, *given, *more, "--out", tmp_path / "out")
    assert end.exit_code == 2
    assert "Give either DICOM, or --dicomweb URL and a --study UID or more." in end.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "extract-features", "watch"])
@pytest.mark.parametrize("url", ["http://pacs.example/dicom-web", "HTTPS://me:hush@pacs.example"])
def test_a_url_in_the_place_of_a_folder_is_told_its_option(command, url, tmp_path):
    """It is no path that cannot be read; nor is a password in it repeated."""
    more = [] if command == "extract-features" else ["--bundle", "bundle"]
    end = run(command, url, *more, "--out", tmp_path / "out")
    assert end.exit_code == 2
    assert "a URL is given by --dicomweb URL" in end.stderr
    assert "hush" not in end.output
    assert not (tmp_path / "out").exists()


def test_days_are_of_an_archive(bundle, tmp_path):
    """Of a folder they would be ignored, and older studies be predicted against what was asked for."""
    (tmp_path / "in").mkdir()
    fixed = "--bundle", bundle, "--out", tmp_path / "out", "--once"
    end = run("watch", tmp_path / "in", *fixed, "--days", 1)
    assert end.exit_code == 2
    assert "--days is of the studies of an archive, --dicomweb" in end.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("url", "uid", "told"),
    [
        ("pacs.example", "1.2.3", "is like https://pacs.example/dicom-web"),
        ("ftp://pacs.example/", "1.2.3", "http or https"),
        ("https://me:hush@pacs.example", "1.2.3", "No name or password in the URL"),
        ("https://pacs.example", "../../admin", "no Study Instance UID"),
        ("https://pacs.example", "", "no Study Instance UID"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_done(url, uid, told, bundle, tmp_path):
    """Nothing is written, and nothing asked."""
    end = predicted(bundle, tmp_path / "out", "--dicomweb", url, "--study", uid)
    assert end.exit_code == 2
    assert told in end.stderr
    assert "hush" not in end.output
    assert not (tmp_path / "out").exists()


def test_python_is_told_the_same(bundle, tmp_path):
    """An archive without a study is a mistake too."""
    with pytest.raises(UsageError, match="No study of the archive is named"):
        predict(ArchivedStudies("https://pacs.example", ()), bundle, tmp_path / "out")


def test_without_the_extra_it_is_named(bundle, tmp_path, monkeypatch):
    """DICOMweb is optional, and nothing else needs it."""
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    for name in ("ich_seq.archive", "ich_seq.dicomweb"):
        monkeypatch.delitem(sys.modules, name)
    end = predicted(bundle, tmp_path / "out", "--dicomweb", "https://pacs.example", "--study", "1.2.3")
    assert end.exit_code == 2
    assert "pip install 'ich-seq[pacs]'" in end.stderr


# ---- results sent back --------------------------------------------------------------------------
@pytest.fixture
def done(tmp_path, monkeypatch, write_slice):
    """A run of predict that is whole, with three DICOM results; returns its folder."""
    out = tmp_path / "out"
    (out / "sr").mkdir(parents=True)
    written = tuple(
        write_slice(out / "sr" / f"{16 * name}-sr.dcm", SOPInstanceUID=f"1.2.20.1.{ord(name)}") for name in "abc"
    )
    counts = Counts(files=9, used=9, excluded=0, rejected=0, reasons={})
    summary = PredictionSummary(out=out, studies=1, counts=counts, results=(), dicom_results=written)
    monkeypatch.setattr("ich_seq.prediction.predict", lambda *_, **__: summary)
    return out


def test_an_archive_s_study_goes_back_with_its_report(pacs, bundle, tmp_path):
    """Sent twice it is there once, and read back it says what studies.csv does, of slices that the archive has."""
    several = (tiny_study(index, seed=0) for index in range(STUDIES, 50))
    study = next(s for s in several if not s.study_uid.startswith("ID_"))  # nothing can refer to the others
    (tmp_path / "dicom").mkdir()
    write_study(study, tmp_path / "dicom")
    put(pacs, *sorted((tmp_path / "dicom").iterdir()))
    asked = "--dicomweb", pacs, *named([study]), "--send", pacs, "--no-report", "--json"
    for _ in range(2):
        end = predicted(bundle, tmp_path / "out", *asked)
        assert end.exit_code == 0, end.output
        told = json.loads(end.stdout)
        assert told["sent"] == {"stored": told["dicom_results"], "refused": {}}
    client, uid = DICOMwebClient(pacs), study.study_uid
    kept = [
        Dataset.from_json(instance, bulk_data_uri_handler=lambda uri: None)
        for instance in client.retrieve_study_metadata(uid)
    ]
    reports, selections = ([ds for ds in kept if ds.Modality == modality] for modality in ("SR", "KO"))
    assert len(reports) + len(selections) == told["dicom_results"]
    (sent,) = reports
    file = BytesIO()
    client.retrieve_instance(uid, sent.SeriesInstanceUID, sent.SOPInstanceUID).save_as(file, enforce_file_format=True)
    groups = hd.sr.srread(BytesIO(file.getvalue())).content.get_image_measurement_groups()
    (row,) = rows_of(tmp_path / "out" / "studies.csv")
    for group in groups:
        label = group.tracking_identifier
        assert group.get_measurements()[0].value == pytest.approx(100 * float(row[label]), abs=1e-3)
        assert {image.referenced_sop_instance_uid for image in group.source_images} <= set(study.sop_uids)
    assert len(groups) == 6


def watched(bundle, out, *arguments):
    fixed = "--bundle", bundle, "--out", out, "--once", "--quiet-time", 0, "--every", 0.05
    days = ("--days", 2) if "--dicomweb" in arguments else ()
    return run("watch", *arguments, *fixed, *days, "--device", "cpu", "--workers", 0, "--quiet", "--json")


@pytest.fixture
def today(pacs, tmp_path):
    """Two studies of today in the archive, one of which no object can refer to; returns the folder of their files."""
    several = [tiny_study(index, seed=1) for index in range(40)]
    (tmp_path / "today").mkdir()
    for odd in (True, False):
        write_study(next(s for s in several if s.study_uid.startswith("ID_") == odd), tmp_path / "today")
    for path in (tmp_path / "today").iterdir():
        with config.disable_value_validation():
            ds = dcmread(path)
            ds.StudyDate = f"{datetime.now():%Y%m%d}"
            ds.save_as(path)
    put(pacs, *sorted((tmp_path / "today").iterdir()))
    return tmp_path / "today"


def test_an_archive_is_watched_and_has_the_reports_of_what_came(pacs, today, bundle, tmp_path):
    """Each study once, as predict says it; a report of each that can have one goes back; watched again nothing does."""
    end = watched(bundle, tmp_path / "out", "--dicomweb", pacs, "--send", pacs)
    assert end.exit_code == 0, end.output
    told = {line["study_uid"]: line for line in map(json.loads, end.stdout.splitlines())}
    assert len(end.stdout.splitlines()) == len(told) == 2
    assert predicted(bundle, tmp_path / "plain", today, "--no-report").exit_code == 0
    said = {row["study_uid"]: row["any"] for row in rows_of(tmp_path / "plain" / "studies.csv")}
    assert said == {uid: f"{line['probabilities']['any']:.6f}" for uid, line in told.items()}
    client = DICOMwebClient(pacs)
    for uid, line in told.items():
        odd, listed = uid.startswith("ID_"), rows_of(Path(line["folder"]) / "sr" / "not_written.csv")
        assert len(listed) == odd
        sent = [] if odd else [s for s in client.search_for_series(uid) if s["00080060"]["Value"] == ["SR"]]
        assert len(sent) == 1 - odd
    again = watched(bundle, tmp_path / "out", "--dicomweb", pacs, "--send", pacs)
    assert (again.exit_code, again.stdout) == (0, "")


def test_what_is_filed_with_a_study_that_is_no_ct_makes_nothing_be_done_again(pacs, today, bundle, tmp_path):
    """A report that somebody else stores in the study; a slice more does, as it may show what was not seen."""
    out = tmp_path / "out"
    assert len(watched(bundle, out, "--dicomweb", pacs).stdout.splitlines()) >= 2
    path = next(p for p in sorted(today.iterdir()) if not p.name.startswith("ID_"))
    with config.disable_value_validation():
        other = dcmread(path)
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = f"{other.SeriesInstanceUID}.9"
        other.SeriesInstanceUID = f"{other.SeriesInstanceUID}.8"
        other.Modality = "OT"
        other.save_as(tmp_path / "other.dcm")
    put(pacs, tmp_path / "other.dcm")
    again = watched(bundle, out, "--dicomweb", pacs)
    assert (again.exit_code, again.stdout) == (0, "")


@pytest.mark.parametrize(
    ("status", "code", "told"), [(403, 3, "does not allow it (HTTP 403)"), (503, 6, "fails (HTTP 503)")]
)
def test_a_study_that_is_listed_and_not_to_be_had_ends_a_single_watch(status, code, told, bundle, tmp_path):
    """Refused it is in the list with its reason; an archive that fails is not asked without end."""
    listed = [{"0020000D": {"vr": "UI", "Value": ["1.2.840.1"]}}]

    def answer(request):
        is_list = request.path.split("?")[0].endswith("/studies")
        request.say_json([] if "offset=1" in request.path else listed) if is_list else request.say(status)

    with serving(answer) as (url, _):
        end = watched(bundle, tmp_path / "out", "--dicomweb", url)
    assert end.exit_code == code, end.output
    rows = rows_of(tmp_path / "out" / "rejected.csv")
    assert [row["reason"] for row in rows] == ["not_fetched"] * (code == 3)
    assert told in (rows[0]["detail"] if rows else end.stderr)


def test_an_archive_that_cannot_be_asked_ends_a_single_watch_with_6(bundle, tmp_path):
    """As it ends predict."""
    end = watched(bundle, tmp_path / "out", "--dicomweb", f"http://127.0.0.1:{free_port()}")
    assert end.exit_code == 6
    assert "cannot be reached" in end.stderr


def test_results_that_an_archive_refuses_end_with_6_and_stay(done, tmp_path, bundle):
    """The result is printed, each refused file named with its reason, and the others are stored."""

    def answer(request):
        failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0x0122]}}]}}
        stored = {"00081199": {"vr": "SQ", "Value": [{}]}}
        request.say_json(failed, 409) if len(request.seen) == 2 else request.say_json(stored)

    with serving(answer) as (url, seen):
        end = predicted(bundle, done, tmp_path, "--send", url)
    assert end.exit_code == 6
    assert end.stdout == f"1 studies, 9 files -> {done}\n2 of 3 results stored in {url.split('/')[2]}\n"
    assert f"1 of 3 results were not stored; ich-seq send {done} URL sends all of them again:" in end.stderr
    assert "sr/bbbbbbbbbbbbbbbb-sr.dcm: The archive at" in end.stderr
    assert "does not take this SOP class (reason 0122)" in end.stderr
    assert len(seen) == 3
    assert len([*(done / "sr").iterdir()]) == 3


def test_results_that_all_went_are_told_of(done, tmp_path, bundle):
    """For people; --json has the same."""
    stored = {"00081199": {"vr": "SQ", "Value": [{}]}}
    with serving(lambda request: request.say_json(stored)) as (url, _):
        end = predicted(bundle, done, tmp_path, "--send", url)
        told = predicted(bundle, done, tmp_path, "--send", url, "--json")
    assert (end.exit_code, end.stderr) == (0, "")
    assert end.stdout == f"1 studies, 9 files -> {done}\n3 of 3 results stored in {url.split('/')[2]}\n"
    assert json.loads(told.stdout)["sent"] == {"stored": 3, "refused": {}}


def test_results_that_an_archive_does_not_take_from_a_watch_end_it_with_6(bundle, tmp_path):
    """All is predicted and lies there; watched again it goes to an archive that does."""
    folder, stored = tmp_path / "in", {"00081199": {"vr": "SQ", "Value": [{}]}}
    folder.mkdir()
    several = (tiny_study(index, seed=1) for index in range(40))
    write_study(next(s for s in several if not s.study_uid.startswith("ID_")), folder)
    with serving(lambda request: request.say(403)) as (url, _):
        end = watched(bundle, tmp_path / "out", folder, "--send", url)
    assert end.exit_code == 6
    assert "cannot be sent: The archive did not take" in end.stderr
    assert "were not sent; run the same command again." in end.stderr
    made = [*Path(json.loads(end.stdout)["folder"]).glob("sr/*.dcm")]
    assert made
    with serving(lambda request: request.say_json(stored)) as (url, seen):
        again = watched(bundle, tmp_path / "out", folder, "--send", url)
        by_hand = run("send", tmp_path / "out", url, "--json")
    assert (again.exit_code, again.stdout) == (0, "")
    assert len(seen) == 2 * len(made)
    assert json.loads(by_hand.stdout) == {"stored": len(made), "refused": {}}


def test_results_are_sent_once_more_by_a_command(done, tmp_path, write_slice):
    """To an archive that takes all but one; what else lies beside them is not sent."""
    write_slice(done / "sr" / "a patient.dcm")
    (done / "run.json").touch()
    (done / "studies" / f".{16 * 'a'}" / "sr").mkdir(parents=True)  # of a watch that was killed
    shutil.copy(next((done / "sr").glob("*-sr.dcm")), done / "studies" / f".{16 * 'a'}" / "sr")

    def answer(request):
        stored = {"00081199": {"vr": "SQ", "Value": [{}]}}
        request.say(403) if len(request.seen) == 3 else request.say_json(stored)

    with serving(answer) as (url, seen):
        end = run("send", done, url)
    assert (end.exit_code, len(seen)) == (6, 3)
    assert end.stdout == f"2 of 3 results stored in {url.split('/')[2]}\n"
    assert "sr/cccccccccccccccc-sr.dcm: The archive at" in end.stderr


@pytest.mark.parametrize(
    ("there", "url", "told"),
    [
        (
            ["run.json"],
            "http://127.0.0.1:9/dicom-web",
            "holds no DICOM results; predict --sr and watch --sr",
        ),
        (["run.json", "sr/not_written.csv"], "http://127.0.0.1:9/dicom-web", "sr/not_written.csv there says why."),
        (["sr/aaaaaaaaaaaaaaaa-sr.dcm"], "http://127.0.0.1:9/dicom-web", "came to its end; it has no run.json."),
        ([], "pacs.example/dicom-web", "http"),
    ],
)
def test_nothing_to_send_is_refused(there, url, told, tmp_path):
    """Before an archive is asked."""
    (tmp_path / "sr").mkdir()
    for name in there:
        (tmp_path / name).touch()
    end = run("send", tmp_path, url, "--quiet")
    assert end.exit_code == 2
    assert told in end.stderr


def test_a_url_to_send_to_is_checked_before_the_work(tmp_path, bundle, monkeypatch):
    """Hours of it would be for nothing."""
    monkeypatch.setattr("ich_seq.prediction.predict", lambda *_, **__: pytest.fail("it was begun"))
    end = predicted(bundle, tmp_path / "out", tmp_path, "--send", "https://me:hush@pacs.example")
    assert end.exit_code == 2
    assert "No name or password in the URL" in end.stderr


# ---- runs that are ended ------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_while_it_fetches_leaves_nothing_for_the_next(number, folder, studies, bundle, tmp_path):
    """By SIGTERM the folder goes, though the archive is silent; after SIGKILL the next run clears it away."""
    out, parts = tmp_path / "out", [(folder / f"{sop}.dcm").read_bytes() for sop in studies[0].sop_uids]

    def hang(request):
        request.say_json([]) if request.is_search else request.server.ended.wait()

    words = ["predict", "--study", studies[0].study_uid, "--bundle", str(bundle), "--out", str(out), "--workers", "0"]
    with serving(hang) as (url, seen):
        command = [sys.executable, "-m", "ich_seq.cli", *words, "--device", "cpu", "--dicomweb", url]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        until = time.monotonic() + 120
        while len(seen) < 2 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        assert len(seen) == 2
        assert (out / FETCHED).stat().st_mode & 0o777 == 0o700
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert (out / FETCHED).exists() is (number == signal.SIGKILL)
    with serving(lambda r: r.say_json([]) if r.is_search else r.say_parts(*parts)) as (url, _):
        end = run(*words, "--device", "cpu", "--quiet", "--dicomweb", url)
    assert end.exit_code == 0, end.output
    assert not (out / FETCHED).exists()
    assert len(rows_of(Path(out) / "slices.csv")) == len(parts)

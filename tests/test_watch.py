"""watch as a function: what it makes of studies that come, grow, go and fail, and what it takes up again."""

from __future__ import annotations

import csv
import json
import re
import shutil
from contextlib import contextmanager
from functools import cache
from math import inf, nan
from types import SimpleNamespace

import numpy as np
import pytest
from attacks.tiny_bundle import write_tiny_bundle

import ich_seq.watch
from ich_seq import ArchiveError, IchSeqError, OutputError, UsageError
from ich_seq.files import locked_folder, short_hash
from ich_seq.incoming import Listed, UnreachableError
from ich_seq.prediction import predict
from ich_seq.reasons import Reason, Unused
from ich_seq.results import read_results
from ich_seq.study_pages import study_page
from ich_seq.watch import watch
from ich_seq.worklist import Pages, folder_of

SLICES = {"1.2.30": 5, "1.2.4": 1, "1.2.5": 3}
PATIENTS = {"1.2.30": "ZQX-4711-A", "1.2.4": "ZQX-4711-B", "1.2.5": "ZQX-4711-A"}
NO_PAGES = Pages(report=False)
NAME = "Haemorrhagicus^Testudo"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def add(write_slice, tmp_path):
    """Add slices of a study to the folder that is watched, from a number on."""
    (tmp_path / "in").mkdir()

    def add(uid, count, start=0):
        for i in range(start, start + count):
            write_slice(
                tmp_path / "in" / f"{uid}-{i}.dcm",
                stored=np.random.default_rng([i, len(uid)]).integers(900, 1200, (16, 16)),
                PixelSpacing=[5, 5],
                ImagePositionPatient=[-40, -40, 5 * i],
                StudyInstanceUID=uid,
                SOPInstanceUID=f"{uid}.{i}",
                PatientID=PATIENTS.get(uid, uid),
                PatientName=NAME,
            )

    return add


@pytest.fixture
def root(add, tmp_path):
    """Three studies of two patients, a file that is none and one that is damaged."""
    for uid, count in SLICES.items():
        add(uid, count)
    (tmp_path / "in" / "notes.txt").write_text("notes")
    (tmp_path / "in" / "bad.dcm").write_text("bad")
    return tmp_path / "in"


@pytest.fixture(scope="module")
def load():
    """Load a bundle as watch does, each but once."""
    return cache(ich_seq.watch.load_bundle)


@pytest.fixture
def run(bundle, load, tmp_path, monkeypatch):
    """Watch a folder once; returns what was told, as fates by study in their order."""
    monkeypatch.setattr(ich_seq.watch, "load_bundle", load)

    def run(root, out="out", shown=NO_PAGES, every_s=0.01, **how):
        told = {}
        watch(
            root, bundle, tmp_path / out, quiet_s=0, every_s=every_s, once=True, device="cpu", workers=0, shown=shown,
            tell=lambda news: told.update({news.record.study_uid: news.record.fate}), **how,
        )  # fmt: skip
        return told

    return run


def tree(folder):
    """Every file below a folder, but for the lock and the journal, which has times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "watch.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def events(out):
    """What the journal says, without times and keys."""
    rows = map(json.loads, (out / "watch.jsonl").read_text().splitlines())
    return [(row["event"], row["study"], row.get("again", row.get("fate"))) for row in rows]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_results_are_those_of_predict_to_the_last_byte(root, run, bundle, tmp_path, cut_frame):
    """Tables, worklist and pages of all; and of each study its part of Kaggle's form."""
    cut_frame(root / "1.2.30-2.dcm")
    assert run(root, shown=Pages()) == dict.fromkeys(sorted(SLICES), "predicted")
    predict(root, bundle, tmp_path / "predicted", device="cpu", workers=0)
    watched, predicted = tree(tmp_path / "out"), tree(tmp_path / "predicted")
    same = ["studies.csv", "slices.csv", "report.html", *map(study_page, SLICES)]
    assert {name: watched[name] for name in same} == {name: predicted[name] for name in same}
    parts = [watched[f"{folder_of(uid)}/submission.csv"].partition(b"\n") for uid in sorted(SLICES)]
    assert parts[0][0] + b"\n" + b"".join(part[2] for part in parts) == predicted["submission.csv"]
    assert sorted(watched["rejected.csv"].splitlines()) == sorted(predicted["rejected.csv"].splitlines())
    told = [json.loads(found["run.json"]) for found in (watched, predicted)]
    assert all(told[0][name] == told[1][name] for name in told[1] if name != "files")
    assert read_results(tmp_path / "out").studies.index.tolist() == [
        r["study_uid"] for r in rows_of(tmp_path / "predicted/studies.csv")
    ]


def test_every_file_of_the_results_is_accounted_for(root, run, tmp_path):
    """A folder a study, whole, with what vouches for it; a page a study; and what is of all of them."""
    run(root, shown=Pages())
    of_each = ["slices.csv", "submission.csv", "studies.csv", "rejected.csv", "study.json"]
    assert tree(tmp_path / "out").keys() == {
        *(f"{folder_of(uid)}/{name}" for uid in SLICES for name in of_each),
        *(study_page(uid) for uid in SLICES),
        *("studies.csv", "slices.csv", "rejected.csv", "run.json", "report.html"),
    }
    run(root, "plain")
    plain, with_pages = (
        {name: data for name, data in tree(tmp_path / out).items() if not re.match("report|.*study.json", name)}
        for out in ("plain", "out")
    )
    assert plain == with_pages
    assert not [name for name in tree(tmp_path / "plain") if name.startswith("report")]


def test_what_is_done_is_not_done_again(root, run, tmp_path):
    """A watch that is started again reads its results back to the last bit, and journals nothing."""
    run(root)
    before, journal = tree(tmp_path / "out"), events(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "studies").rglob("*")}
    assert run(root) == {}
    assert (tree(tmp_path / "out"), events(tmp_path / "out")) == (before, journal)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_numbers_that_are_none_are_read_back(root, run, bundle, tmp_path, monkeypatch):
    """NaN is no JSON; a study without a probability is to stay the first one of the list."""
    from ich_seq.bundle import Bundle

    monkeypatch.setattr(Bundle, "novelty", lambda *_: float("nan"))
    run(root)
    monkeypatch.undo()
    before = tree(tmp_path / "out")
    assert run(root) == {}
    assert tree(tmp_path / "out") == before
    assert {row["novelty"] for row in rows_of(tmp_path / "out/studies.csv")} == {""}


def test_late_slices_replace_the_result(root, run, add, tmp_path):
    """As if all had been there at once; the journal says that it was done again."""
    run(root)
    add("1.2.4", 3, start=1)
    assert run(root) == {"1.2.4": "predicted"}
    assert events(tmp_path / "out")[-2:] == [("begun", "1.2.4", True), ("ended", "1.2.4", "predicted")]
    run(root, "afresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "afresh")


def test_a_changed_file_has_its_study_done_again(root, run, add, tmp_path, write_slice):
    """A modality that sends a corrected slice."""
    run(root)
    write_slice(root / "1.2.4-0.dcm", PixelSpacing=[5, 5], StudyInstanceUID="1.2.4", SOPInstanceUID="1.2.4.0",
                PatientID=PATIENTS["1.2.4"], InstanceNumber=77)  # fmt: skip
    assert run(root) == {"1.2.4": "predicted"}
    run(root, "afresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "afresh")


def test_results_stay_when_their_files_go(root, run, tmp_path):
    """A router that cleans up takes no result away; only files of no study are no more listed."""
    run(root)
    before = tree(tmp_path / "out")
    for path in root.iterdir():
        path.unlink()
    assert run(root) == {}
    after = tree(tmp_path / "out")
    assert len(rows_of(tmp_path / "out/rejected.csv")) == 0
    same = before.keys() - {"rejected.csv", "run.json"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_a_result_is_not_replaced_by_one_of_what_is_left(root, run, add, tmp_path):
    """A late slice after the others were cleaned up: the older result stays, and that is said once."""
    run(root)
    before, warned = tree(tmp_path / "out"), []
    for path in root.glob("1.2.30-*"):
        path.unlink()
    add("1.2.30", 1, start=5)
    for _ in range(2):
        assert run(root, warn=warned.append) == {}
    assert tree(tmp_path / "out") == before
    assert [event for event, *_ in events(tmp_path / "out")].count("kept") == 1
    assert len(warned) == 1
    assert "1.2.30" in warned[0]
    add("1.2.30", 5)
    assert run(root, warn=warned.append) == {"1.2.30": "predicted"}


def test_a_study_moved_within_the_folder_keeps_its_result(root, run, tmp_path):
    """A router that sorts what was done into folders makes nothing be done again."""
    run(root)
    (root / "done").mkdir()
    for path in root.glob("1.2.30-*"):
        path.rename(root / "done" / path.name)
    assert run(root) == {}


def test_a_study_without_a_usable_slice_is_listed_and_not_tried_again(root, run, add, tmp_path, cut_frame):
    """Each of its files has its reason; when sound ones come it gets its result."""
    add("1.2.6", 2)
    for path in root.glob("1.2.6-*"):
        cut_frame(path)
    assert run(root, shown=Pages())["1.2.6"] == "unusable"
    out = tmp_path / "out"
    assert {row["reason"] for row in rows_of(out / folder_of("1.2.6") / "rejected.csv")} == {"decode"}
    assert [row["study_uid"] for row in rows_of(out / "rejected.csv")] == ["1.2.6", "1.2.6", "", ""]
    assert json.loads((out / "run.json").read_text())["without_result"] == {
        "1.2.6": {"fate": "unusable", "reason": "no usable slice (decode 2)"}
    }
    assert "Studies without a result" in (out / "report.html").read_text()
    assert run(root, shown=Pages()) == {}
    add("1.2.6", 2, start=2)
    assert run(root, shown=Pages()) == {"1.2.6": "predicted"}
    assert "without a result" not in (out / "report.html").read_text()


def test_a_study_that_becomes_unusable_loses_its_page(root, run, tmp_path, write_slice):
    """Late slices that name another patient: whose head it is cannot be known any more."""
    run(root, shown=Pages())
    assert (tmp_path / "out" / study_page("1.2.4")).exists()
    write_slice(root / "late.dcm", StudyInstanceUID="1.2.4", SOPInstanceUID="late", PatientID="somebody else")
    assert run(root, shown=Pages()) == {"1.2.4": "unusable"}
    assert not (tmp_path / "out" / study_page("1.2.4")).exists()
    assert "1.2.4" not in {row["study_uid"] for row in rows_of(tmp_path / "out/studies.csv")}


def test_what_is_no_head_ct_is_no_alarm(root, run, tmp_path, write_slice):
    """A study of another modality is listed by rule, and not among those that somebody has to look at."""
    write_slice(root / "mr.dcm", StudyInstanceUID="9", Modality="MR")
    assert run(root, shown=Pages())["9"] == "unusable"
    assert "without a result" not in (tmp_path / "out/report.html").read_text()
    assert "not_ct" in (tmp_path / "out/rejected.csv").read_text()


@pytest.fixture
def failing(monkeypatch):
    """Let the prediction of some studies raise an error."""
    plain = ich_seq.watch.predict_cases

    def fail(studies, error):
        def failed(cases, *rest, **how):
            if cases[0].study.uid in studies:
                raise error
            return plain(cases, *rest, **how)

        monkeypatch.setattr(ich_seq.watch, "predict_cases", failed)

    return fail


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IchSeqError("No process can be started; free memory."), "No process can be started; free memory."),
        (KeyError(NAME), "a bug of ich-seq, KeyError in test_watch.py:"),
    ],
)
def test_a_study_that_fails_is_listed_and_the_others_go_on(root, run, tmp_path, failing, error, reason):
    """Each of its files is rejected with the reason; a text that is not ours is not told. It is not tried again."""
    failing(["1.2.30"], error)
    warned = []
    assert run(root, shown=Pages(), warn=warned.append) == {
        "1.2.30": "failed",
        "1.2.4": "predicted",
        "1.2.5": "predicted",
    }
    out = tmp_path / "out"
    assert json.loads((out / "run.json").read_text())["without_result"]["1.2.30"]["reason"].startswith(reason)
    listed = [row for row in rows_of(out / "rejected.csv") if row["reason"] == "failed"]
    assert [row["file"] for row in listed] == sorted(short_hash(f"1.2.30-{i}.dcm") for i in range(5))
    assert reason in (out / "report.html").read_text()
    assert not [name for name, data in tree(out).items() if b"Testudo" in data]
    assert reason in warned[0]
    assert "Testudo" not in warned[0]
    failing([], error)
    assert run(root, shown=Pages()) == {}
    shutil.rmtree(out / folder_of("1.2.30"))
    assert run(root, shown=Pages()) == {"1.2.30": "predicted"}


def test_three_studies_in_a_row_that_fail_end_the_watch(root, run, add, tmp_path, failing):
    """Then it is not the studies; they are listed, and those behind them are still to be done."""
    add("1.2.9", 1)
    failing(SLICES, KeyError(NAME))
    with pytest.raises(KeyError):
        run(root)
    failing([], None)
    assert [fate for event, _, fate in events(tmp_path / "out") if event == "ended"] == ["failed"] * 3
    assert run(root) == {"1.2.9": "predicted"}


def test_a_full_disk_ends_the_watch_and_it_can_be_taken_up(root, run, tmp_path):
    """What was done stays; the study that was in work is done again."""

    def full(folder, study, said):
        if study.uid == "1.2.4":
            raise OutputError("Cannot write it: No space left on device.")

    with pytest.raises(OutputError):
        run(root, also=full)
    assert events(tmp_path / "out")[-1] == ("begun", "1.2.4", False)
    assert run(root) == {"1.2.4": "predicted", "1.2.5": "predicted"}
    run(root, "afresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "afresh")


def test_a_damaged_study_is_done_again(root, run, tmp_path):
    """Its folder is known by SHA-256; one that somebody changed is no result."""
    run(root)
    before = tree(tmp_path / "out")
    (tmp_path / "out" / folder_of("1.2.5") / "slices.csv").write_text("other")
    (tmp_path / "out" / folder_of("1.2.30") / "study.json").write_text("{}")
    assert run(root) == {"1.2.30": "predicted", "1.2.5": "predicted"}
    assert tree(tmp_path / "out") == before


def test_what_is_not_ours_in_the_folder_of_studies_stays(root, run, tmp_path):
    """Somebody's notes are not a study that was broken off."""
    run(root)
    (tmp_path / "out/studies/notes").mkdir()
    (tmp_path / "out/studies/notes/a.txt").write_text("mine")
    (tmp_path / "out/studies/.0123456789abcdef").mkdir()
    run(root)
    assert (tmp_path / "out/studies/notes/a.txt").read_text() == "mine"
    assert not (tmp_path / "out/studies/.0123456789abcdef").exists()


def test_a_worklist_is_of_one_watch_one_bundle_and_one_way_to_name_things(root, run, bundle, tmp_path):
    """A second process, another command, another bundle and other names are refused."""
    run(root)
    with locked_folder(tmp_path / "out"), pytest.raises(OutputError, match="Another process"):
        run(root)
    with pytest.raises(UsageError, match="results of watch"):
        predict(root, bundle, tmp_path / "out", device="cpu", workers=0)
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match=r"made with another bundle, another choice of --report; .* another --out"):
        watch(root, other, tmp_path / "out", quiet_s=0, once=True, device="cpu")
    for shown, what in (
        (Pages(phi=True, report=False), "phi"),
        (Pages(), "report"),
        (Pages(report=False, sr=True), "sr"),
    ):
        with pytest.raises(UsageError, match=f"made with another choice of --{what}; .* choose another --out"):
            run(root, shown=shown)


def test_studies_that_the_journal_does_not_know_are_nobody_s_to_clear_away(root, run, tmp_path):
    """A journal that was lost, or cannot be read, makes no result be done again or removed."""
    run(root)
    journal = tmp_path / "out" / "watch.jsonl"
    before = tree(tmp_path / "out")
    journal.write_text("")
    with pytest.raises(UsageError, match="does not tell of the studies beside it"):
        run(root)
    assert tree(tmp_path / "out") == before


def test_results_of_another_command_are_not_written_over(root, run, tmp_path):
    """They may have taken days."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "slices.csv").write_text("of predict")
    with pytest.raises(UsageError, match="results of predict"):
        run(root)


@pytest.mark.parametrize("name", ["nowhere", "in/bad.dcm"])
def test_what_is_no_folder_cannot_be_watched(root, run, tmp_path, name):
    """A typing error is told at once, not waited for."""
    with pytest.raises(UsageError, match=name):
        run(tmp_path / name)


@pytest.mark.parametrize(
    "times", [{"quiet_s": nan}, {"quiet_s": -1}, {"every_s": nan}, {"every_s": inf}, {"every_s": 0}]
)
def test_times_that_cannot_be_meant_are_refused(bundle, tmp_path, times):
    """Before anything is read or written."""
    with pytest.raises(UsageError, match="cannot be meant"):
        watch(tmp_path, bundle, tmp_path / "out", **times)
    assert not (tmp_path / "out").exists()


def test_patients_are_named_only_where_that_is_asked_for(root, run, tmp_path):
    """Their IDs and the names of files with --phi, their names never."""
    run(root)
    run(root, "named", shown=Pages(phi=True, report=False))
    plain, named = (tree(tmp_path / out) for out in ("out", "named"))
    assert not [name for name, data in plain.items() if b"ZQX-4711" in data or b"bad.dcm" in data]
    assert {row["patient_id"] for row in rows_of(tmp_path / "named/studies.csv")} == {*PATIENTS.values()}
    assert b"bad.dcm" in named["rejected.csv"]
    for found in (plain, named):
        assert not [name for name, data in found.items() if b"Testudo" in data]
    assert "ZQX" not in (tmp_path / "named/watch.jsonl").read_text()


def test_a_worklist_may_ask_to_be_loaded_anew(root, run, tmp_path):
    """Its pages only, and only if that was asked for; no script is needed for it."""
    run(root, shown=Pages(refresh_s=30))
    pages = {name: data for name, data in tree(tmp_path / "out").items() if name.endswith(".html")}
    assert {name for name, data in pages.items() if b'<meta http-equiv="refresh" content="30">' in data} == {
        "report.html"
    }


def test_more_can_be_written_into_a_study_s_folder_and_is_vouched_for(root, run, tmp_path):
    """Such as DICOM objects; what an older result had and a newer has not is gone."""

    def also(folder, study, said):
        (folder / "sr").mkdir()
        (folder / "sr" / f"{len(said.sop_uids)}.dcm").write_bytes(study.uid.encode())

    run(root, also=also)
    made = tmp_path / "out" / folder_of("1.2.4") / "sr" / "1.dcm"
    assert made.read_bytes() == b"1.2.4"
    made.write_bytes(b"other")
    assert run(root, also=also) == {"1.2.4": "predicted"}
    assert made.read_bytes() == b"1.2.4"


def test_dicom_objects_and_more_of_yours_are_both_written(root, run, tmp_path):
    """One does not take the place of the other."""
    pytest.importorskip("highdicom")
    run(root, shown=Pages(report=False, sr=True), also=lambda folder, *_: (folder / "mine").write_text("x"))
    names = {path.name for path in (tmp_path / "out" / folder_of("1.2.4")).rglob("*")}
    assert {"mine", f"{short_hash('1.2.4')}-sr.dcm"} <= names


def test_each_result_is_sent_once_and_until_it_arrives(root, run, add):
    """A receiver that is down holds no study up; what may have arrived is sent as unsure, after a restart too."""
    sent, warned, down = [], [], True

    def send(folder, unsure):
        if folder.name == short_hash("1.2.4") and down:
            raise UsageError("Nobody answers.")
        assert (folder / "study.json").exists()
        sent.append((folder.name, unsure))

    assert len(run(root, send=send, warn=warned.append)) == 3
    assert sent == [(short_hash("1.2.30"), False), (short_hash("1.2.5"), False)]
    assert warned == ["Study 1.2.4 cannot be sent: Nobody answers. It is tried again."]
    down = False
    run(root, send=send)
    assert sent[2:] == [(short_hash("1.2.4"), True)]
    add("1.2.5", 1, start=9)
    run(root, send=send)
    assert sent[3:] == [(short_hash("1.2.5"), False)]


def test_what_a_receiver_refuses_for_good_keeps_nothing_else_back(root, run, add):
    """All that came first is refused each time, which is said once; what comes later is sent."""
    sent, warned = [], []

    def send(folder, unsure):
        if folder.name in map(short_hash, SLICES):
            raise ArchiveError("It takes no such object.")
        sent.append(folder.name)

    add("1.2.6", 1)
    run(root)
    run(root, send=send, warn=warned.append)
    assert sent == [short_hash("1.2.6")]
    assert warned == ["Study 1.2.30 cannot be sent: It takes no such object. It is tried again."]


def test_a_receiver_that_is_gone_is_left_alone_after_three_studies(root, run, add):
    """Each try takes its time; what was never tried goes first when it is back."""
    tried, gone = [], True

    def send(folder, unsure):
        tried.append(folder.name)
        if gone:
            raise UnreachableError("Nobody answers.")

    add("1.2.6", 1)
    run(root)
    run(root, send=send, every_s=60)  # all in one look
    assert tried == [*map(short_hash, ("1.2.30", "1.2.4", "1.2.5"))]
    gone = False
    run(root, send=send)
    assert tried[3:] == [*map(short_hash, ("1.2.6", "1.2.30", "1.2.4", "1.2.5"))]


def test_a_server_that_lists_studies_is_watched_like_a_folder(root, run, tmp_path):
    """Each is fetched when it is ready; one that cannot be fetched is tried again."""
    asked = []

    @contextmanager
    def fetch(uid):
        asked.append(uid)
        if uid == "1.2.4" and asked.count(uid) == 1:
            raise UsageError("It is busy.")
        with_study = tmp_path / "fetched"
        with_study.mkdir()
        for path in root.glob(f"{uid}-*"):
            shutil.copy(path, with_study)
        yield SimpleNamespace(folder=with_study, unused=())
        shutil.rmtree(with_study)

    warned = []
    assert run(Listed(lambda: SLICES, fetch, 0), warn=warned.append) == dict.fromkeys(SLICES, "predicted")
    assert "It is busy. Waiting for it." in warned
    assert run(Listed(lambda: SLICES, fetch, 0)) == {}
    assert sorted(asked) == sorted([*SLICES, "1.2.4"])
    run(root, "of folder")
    assert (tmp_path / "out/slices.csv").read_bytes() == (tmp_path / "of folder/slices.csv").read_bytes()


def test_a_study_that_cannot_be_fetched_ends_a_single_watch_when_all_others_are_done(root, run, tmp_path):
    """It is not waited for without end, and the code is that of the refusal."""
    asked = []

    @contextmanager
    def fetch(uid):
        asked.append(uid)
        if uid == "1.2.30":
            raise ArchiveError("It fails.")
        yield SimpleNamespace(folder=root, unused=())

    with pytest.raises(UnreachableError, match="It fails") as told:
        run(Listed(lambda: SLICES, fetch, 0))
    assert told.value.exit_code == 6
    assert asked.count("1.2.30") <= 5
    assert {row["study_uid"] for row in rows_of(tmp_path / "out/studies.csv")} == {"1.2.4", "1.2.5"}


def test_a_full_disk_while_a_study_is_fetched_ends_the_watch(run):
    """It is no fault of the archive, which would be waited for."""

    @contextmanager
    def fetch(uid):
        raise OutputError("Cannot write.")
        yield

    with pytest.raises(OutputError):
        run(Listed(lambda: SLICES, fetch, 0))


def test_a_study_that_did_not_come_is_listed_and_asked_for_again_by_the_next_watch(run, tmp_path):
    """As one that the archive refuses."""
    asked = []

    @contextmanager
    def fetch(uid):
        asked.append(uid)
        (tmp_path / "fetched").mkdir(exist_ok=True)
        yield SimpleNamespace(folder=tmp_path / "fetched", unused=(Unused("x", Reason.NOT_FETCHED, "No.", uid),))

    for _ in range(2):
        assert run(Listed(lambda: {"1": 5}, fetch, 0)) == {"1": "unusable"}
    assert asked == ["1", "1"]


def test_files_that_go_while_they_are_read_make_no_result(root, run, tmp_path, monkeypatch):
    """A study that is moved away at that moment is neither unusable nor done: it is looked at again."""
    plain, moved = ich_seq.watch.read_headers, []

    def move_away(named, **how):
        if not moved and named[0][0].name.startswith("1.2.5"):
            moved.extend(path.rename(path.with_name(f"late-{path.name}")) for path, *_ in named)
        return plain(named, **how)

    monkeypatch.setattr(ich_seq.watch, "read_headers", move_away)
    assert run(root) == dict.fromkeys(SLICES, "predicted")
    assert [(event, again) for event, study, again in events(tmp_path / "out") if study == "1.2.5"] == [
        ("begun", False), ("begun", False), ("ended", "predicted"),
    ]  # fmt: skip


def test_a_folder_that_goes_while_a_study_is_read_makes_no_result(root, run, tmp_path, monkeypatch):
    """A share that is gone for a moment rejects nothing; with --once that is an error, else waited for."""
    plain = ich_seq.watch.read_headers

    def hiccup(named, **how):
        root.rename(tmp_path / "away")
        return plain(named, **how)

    monkeypatch.setattr(ich_seq.watch, "read_headers", hiccup)
    with pytest.raises(UnreachableError):
        run(root)
    monkeypatch.undo()
    (tmp_path / "away").rename(root)
    assert [event for event, *_ in events(tmp_path / "out")] == ["begun"]
    assert run(root) == dict.fromkeys(SLICES, "predicted")


def test_an_empty_folder_is_an_empty_worklist(bundle, tmp_path, run):
    """Nothing has come yet, which is no error; and there is a page to open."""
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", shown=Pages()) == {}
    assert re.search(r"0\s+studies", (tmp_path / "out/report.html").read_text())
    assert rows_of(tmp_path / "out/studies.csv") == []
    assert (tmp_path / "out/rejected.csv").read_text() == "file,fate,reason,detail,study_uid,frame\n"

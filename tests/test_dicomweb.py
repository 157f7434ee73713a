"""DICOMweb: studies from an archive and results to it, by Debian's Orthanc and by a server that does as it is told."""

from __future__ import annotations

import json
import stat
import threading
import time
from datetime import date
from pathlib import Path

import highdicom
import numpy as np
import pytest
import requests
from archives import MULTIPART, forget_the_user, multipart, orthanc, put, serving
from attacks.verdicts import read_header
from pydicom import dcmread
from pydicom.sr.codedict import codes

from ich_seq import ArchiveError, OutputError, archive, dicomweb
from ich_seq.archive import Fault
from ich_seq.dicom import SliceHeader
from ich_seq.dicomweb import FETCHED, ListedStudy, count_ct, fetched, list_studies, send
from ich_seq.files import locked_folder, sha256_file, short_hash
from ich_seq.reasons import Reason

STUDY, OTHER = "1.2.30", "1.2.4"


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """The same for whoever runs the tests."""
    forget_the_user(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """An archive without accounts, empty at first; the URL of its DICOMweb service."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


@pytest.fixture(scope="module")
def slices(write_slice, tmp_path_factory):
    """The bytes of four slices of a study."""
    root = tmp_path_factory.mktemp("slices")
    how = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.1"}
    return [write_slice(root / f"{i}.dcm", SOPInstanceUID=f"{STUDY}.1.{i}", **how).read_bytes() for i in range(4)]


@pytest.fixture(scope="module")
def foreign(write_slice, tmp_path_factory):
    """The bytes of a slice of another study."""
    path = tmp_path_factory.mktemp("foreign") / "a.dcm"
    return write_slice(path, StudyInstanceUID=OTHER, SOPInstanceUID=f"{OTHER}.1").read_bytes()


@pytest.fixture(scope="module")
def slice_of(write_slice):
    """Write slice number `number` of a study; returns its path."""

    def write(path, study, number=1, **tags):
        sop = f"{study}.1.{number}"
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "SOPInstanceUID": sop, "meta_sop": sop}
        return write_slice(path, **uids | tags)

    return write


def take(url, tmp_path, *uids):
    """Fetch studies; returns the bytes that came of each study, and what did not."""
    with locked_folder(tmp_path / "out"), fetched(url, uids or (STUDY,), tmp_path / "out") as arrived:
        came = {
            uid: sorted(p.read_bytes() for p in (arrived.folder / short_hash(uid)).rglob("*") if p.is_file())
            for uid in uids or (STUDY,)
        }
        assert sum(map(len, came.values())) == sum(p.is_file() for p in arrived.folder.rglob("*"))
    assert not (tmp_path / "out" / FETCHED).exists()
    return came, arrived.unused


def reasons(unused):
    return [(u.reason, u.study_uid) for u in unused]


def listing(*series):
    """Series as an archive lists them: UID, modality, number of instances."""
    return [
        {
            "0020000E": {"vr": "UI", "Value": [uid]},
            **({"00080060": {"vr": "CS", "Value": [modality]}} if modality else {}),
            **({"00201209": {"vr": "IS", "Value": [count]}} if count is not None else {}),
        }
        for uid, modality, count in series
    ]


def answering(parts, series=None):
    """Answer searches with a list of series, and all else with instances or whatever `parts` does."""

    def answer(request):
        if request.is_search:
            request.say_json(series or [])
        elif callable(parts):
            parts(request)
        else:
            request.say_parts(*parts)

    return answer


# ---- fetching -----------------------------------------------------------------------------------
def test_what_arrives_are_the_bytes_that_were_stored(pacs, tmp_path, slice_of):
    """Compressed, of another syntax or plain: nothing is recoded on the way."""
    syntaxes = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]
    paths = [slice_of(tmp_path / f"{i}.dcm", "1.2.5", i, syntax=syntax) for i, syntax in enumerate(syntaxes)]
    put(pacs, *paths)
    came, unused = take(pacs, tmp_path, "1.2.5")
    assert came["1.2.5"] == sorted(path.read_bytes() for path in paths)
    assert unused == ()


@pytest.mark.parametrize("name", ["ge_head_tilt", "codecs_head_ct2"])
def test_real_studies_arrive_byte_for_byte(name, pacs, shared_data, tmp_path):
    """Of a scanner's own private elements and of compressed frames nothing is changed."""
    paths = [path for path in sorted((shared_data / name).rglob("*")) if _is_ct(path)]
    stored = {}
    for path in paths:
        stored.setdefault(read_header(path, path.name).sop_uid, path)  # of one instance the archive keeps one encoding
    put(pacs, *stored.values())
    uids = {read_header(path, path.name).study_uid for path in paths}
    came, unused = take(pacs, tmp_path, *uids)
    assert sorted(data for one in came.values() for data in one) == sorted(p.read_bytes() for p in stored.values())
    assert unused == ()


def _is_ct(path):
    return path.is_file() and isinstance(read_header(path, path.name), SliceHeader)


def test_a_study_that_the_archive_does_not_have_costs_itself_only(pacs, slice_of, tmp_path):
    """It is told of by its UID; the others are there."""
    put(pacs, slice_of(tmp_path / "a.dcm", "1.2.6"))
    came, unused = take(pacs, tmp_path, "1.2.999", "1.2.6", "ID_38fad23bc")
    assert [len(came[uid]) for uid in came] == [0, 1, 0]
    assert reasons(unused) == [(Reason.NOT_FETCHED, "1.2.999"), (Reason.NOT_FETCHED, "ID_38fad23bc")]
    assert all("does not have it (HTTP 404)" in u.detail for u in unused)


def test_only_ct_series_are_fetched(pacs, slice_of, tmp_path):
    """The structured report of the study stays where it is; a study without CT is left out by rule."""
    ct = slice_of(tmp_path / "ct.dcm", "1.2.7")
    put(pacs, ct, _report(ct, tmp_path / "sr.dcm"), slice_of(tmp_path / "mr.dcm", "1.2.8", Modality="MR"))
    came, unused = take(pacs, tmp_path, "1.2.7", "1.2.8")
    assert came == {"1.2.7": [ct.read_bytes()], "1.2.8": []}
    assert reasons(unused) == [(Reason.NOT_CT, "1.2.8")]
    assert unused[0].fate == "excluded"


def test_the_folder_is_closed_to_others_and_goes_with_the_block(tmp_path, slices):
    """Also when the block fails."""
    out, seen = tmp_path / "out", []

    def fail(url):
        with locked_folder(out), fetched(url, [STUDY], out) as arrived:
            seen.append((arrived.folder, stat.S_IMODE(arrived.folder.stat().st_mode)))
            raise ZeroDivisionError

    with serving(answering(slices)) as (url, _), pytest.raises(ZeroDivisionError):
        fail(url)
    assert seen == [(out / FETCHED, 0o700)]
    assert {path.name for path in out.iterdir()} == {".lock"}


def test_what_a_killed_run_left_is_cleared_away(tmp_path, slices):
    """By the next command that opens the folder, whichever it is; a link is removed, and not what it leads to."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    (out / FETCHED / "study").mkdir(parents=True)
    (out / FETCHED / "study" / "a.dcm").write_bytes(slices[0])
    mine.mkdir()
    (mine / "kept").touch()
    (out / "link.ich-seq-partial").symlink_to(mine)
    with locked_folder(out):
        assert {path.name for path in out.iterdir()} == {".lock"}
    assert (mine / "kept").exists()


def test_a_file_is_called_by_its_content(tmp_path, slices):
    """Name and time are the same in whatever order instances come, so that a store knows them again."""
    seen = []
    for order in (slices, slices[::-1]):
        with serving(answering(order)) as (url, _), locked_folder(tmp_path), fetched(url, [STUDY], tmp_path) as arrived:
            files = [p for p in arrived.folder.rglob("*") if p.is_file()]
            assert all(p.name == f"{sha256_file(p)[:16]}.dcm" for p in files)
            seen.append({p.relative_to(arrived.folder): p.stat().st_mtime_ns for p in files})
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == len(slices)


def test_an_instance_that_is_sent_twice_is_two_files(tmp_path, slices):
    """Which of them is used is settled as among all copies."""
    with serving(answering([*slices, slices[0]])) as (url, _):
        assert take(url, tmp_path)[0][STUDY] == sorted([*slices, slices[0]])


def test_a_study_asked_for_twice_is_fetched_once(tmp_path, slices):
    """It is one study."""
    with (
        serving(answering(slices)) as (url, _),
        locked_folder(tmp_path),
        fetched(url, [STUDY] * 2, tmp_path) as arrived,
    ):
        assert sum(p.is_file() for p in arrived.folder.rglob("*")) == len(slices)
        assert arrived.unused == ()


def test_an_instance_of_another_study_is_left_out(tmp_path, slices, foreign):
    """Who asks for one patient's head must not be given another's; what is no DICOM is judged with the other files."""
    with serving(answering([*slices, foreign, b"no DICOM"])) as (url, _):
        came, unused = take(url, tmp_path)
    assert came[STUDY] == sorted([*slices, b"no DICOM"])
    assert reasons(unused) == [(Reason.WRONG_STUDY, STUDY)]


def test_an_instance_that_is_too_long_is_left_out_and_not_written(tmp_path, slices, monkeypatch):
    """The others of the study are there."""
    monkeypatch.setattr(dicomweb, "MAX_FILE_BYTES", 4000)
    with serving(answering([slices[0], bytes(300_000), slices[1]])) as (url, _):
        came, unused = take(url, tmp_path)
    assert came[STUDY] == sorted(slices[:2])
    assert reasons(unused) == [(Reason.TOO_LARGE, STUDY)]
    assert "300000 bytes" in unused[0].detail


def cut_short(request):
    data = multipart([b"x" * 3000, b"y" * 3000])
    request.say(200, data[:4000], MULTIPART)


def breaks_off(request):
    request.say(200, multipart([b"x" * 3000])[:2000], MULTIPART, Content_Length="99999")


def a_page(request):
    request.say(200, b"<html>Please log in</html>", "text/html")


def partial_content(request):
    request.say(206, multipart([b"x"]), MULTIPART)


def nothing(request):
    request.say(204)


def no_instance(request):
    request.say(200, b"--boundary of the test--\r\n", MULTIPART)


def without_a_type(request):
    request.say(200, multipart([b"x"]), "")


def endless_headers(request):
    request.say_endlessly(b"--boundary of the test\r\n" + b"A" * 99_999, kind=MULTIPART)


def endless_part(request):
    if not getattr(request, "begun", False):
        request.send_response(200)
        request.send_header("Content-Type", MULTIPART)
        request.end_headers()
        request.wfile.write(b"--boundary of the test\r\n\r\n")
    try:
        while not request.server.ended.is_set():
            request.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def endless_parts(request):
    request.say_endlessly(b"\r\n--boundary of the test\r\n\r\nx" * 100, kind=MULTIPART)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (cut_short, "the message is cut short"),
        (breaks_off, "breaks off"),
        (a_page, "no multipart message"),
        (partial_content, "HTTP 206"),
        (nothing, "HTTP 204"),
        (without_a_type, "no multipart message"),
        (endless_headers, "headers of a part do not end"),
        (endless_part, "more than 8388608 bytes of a study"),
        (endless_parts, "more than 100 instances"),
        (lambda r: r.say(403), "HTTP 403"),
        (lambda r: r.say(500), "HTTP 500"),
    ],
    ids=lambda a: getattr(a, "__name__", "says"),
)
def test_a_study_that_does_not_come_whole_does_not_come(answer, told, tmp_path, slices, monkeypatch):
    """The other study of the run is there, and of this one nothing but the reason."""
    monkeypatch.setattr(dicomweb, "MAX_STUDY_BYTES", 8 << 20)
    monkeypatch.setattr(dicomweb, "MAX_INSTANCES", 100)
    either = answering(lambda r: r.say_parts(*slices) if f"/{STUDY}" in r.path else answer(r))
    with serving(either) as (url, _):
        came, unused = take(url, tmp_path, OTHER, STUDY)
    assert came == {STUDY: sorted(slices), OTHER: []}
    assert reasons(unused) == [(Reason.NOT_FETCHED, OTHER)]
    assert told in unused[0].detail


@pytest.mark.parametrize("answer", [lambda r: r.say_endlessly(b"x", 0.02, MULTIPART), lambda r: r.server.ended.wait()])
def test_a_study_that_trickles_in_is_given_up(answer, tmp_path, slices, monkeypatch):
    """And with it the archive, should there be no other."""
    monkeypatch.setattr(archive, "SILENCE_S", 0.4)
    with serving(answering(answer)) as (url, _), pytest.raises(ArchiveError, match=r"does not get on|breaks off"):
        take(url, tmp_path)


def test_a_delivery_that_was_given_up_takes_nothing_from_the_next(tmp_path, slices, monkeypatch):
    """It notices when its archive lets it, perhaps while the same study is fetched anew."""
    monkeypatch.setattr(archive, "SILENCE_S", 0.4)
    asked, whole, let_go = [], multipart(slices), threading.Event()

    def answer(request):
        asked.append(request)
        request.send_response(200)
        request.send_header("Content-Type", MULTIPART)
        request.end_headers()
        if len(asked) == 1:
            while not let_go.wait(0.02):
                request.wfile.write(b"x")
        else:
            request.wfile.write(whole[:1000])
            let_go.set()
            time.sleep(0.2)
            request.wfile.write(whole[1000:])

    with serving(answering(answer)) as (url, _):
        with pytest.raises(ArchiveError, match="does not get on"):
            take(url, tmp_path)
        assert take(url, tmp_path) == ({STUDY: sorted(slices)}, ())


def test_a_delivery_that_was_cut_short_is_asked_for_again(tmp_path, slices):
    """And taken when it comes whole, once."""
    attempts = []

    def second_time(request):
        attempts.append(request)
        cut_short(request) if len(attempts) == 1 else request.say_parts(*slices)

    with serving(answering(second_time)) as (url, _):
        assert take(url, tmp_path) == ({STUDY: sorted(slices)}, ())
    assert len(attempts) == 2


def test_what_was_cut_short_does_not_count_towards_the_length_of_a_study(tmp_path, slices, monkeypatch):
    """Each attempt may be as long as a study is."""
    monkeypatch.setattr(dicomweb, "MAX_STUDY_BYTES", int(1.5 * len(multipart(slices))))
    attempts = []

    def third_time(request):
        attempts.append(request)
        request.say_parts(*slices, end=b"--\r\n" if len(attempts) == 3 else b"\r\n")

    with serving(answering(third_time)) as (url, _):
        assert take(url, tmp_path) == ({STUDY: sorted(slices)}, ())


def test_a_study_without_an_instance_is_told_of(tmp_path, slices):
    """An empty message is one, and no study may vanish."""
    either = answering(lambda r: r.say_parts(*slices) if f"/{STUDY}" in r.path else no_instance(r))
    with serving(either) as (url, _):
        assert reasons(take(url, tmp_path, STUDY, OTHER)[1]) == [(Reason.NOT_FETCHED, OTHER)]


def test_instances_that_an_archive_keeps_back_are_told_of(tmp_path, slices):
    """It listed six, and four came: the four are used."""
    with serving(answering(slices, listing((f"{STUDY}.1", "CT", 6)))) as (url, seen):
        came, unused = take(url, tmp_path)
    assert came[STUDY] == sorted(slices)
    assert reasons(unused) == [(Reason.NOT_FETCHED, STUDY)]
    assert "lists 6 instances of a series and sent 4" in unused[0].detail
    assert seen[-1].path == f"/dicom-web/studies/{STUDY}/series/{STUDY}.1"


@pytest.mark.parametrize(
    ("series", "paths"),
    [
        ([], [""]),
        ([("1.1", "CT", 4), ("1.2", "SR", 1), ("1.3", "KO", 1)], ["/series/1.1"]),
        ([("1.1", None, None), ("1.2", "CT", None)], ["/series/1.1", "/series/1.2"]),
        ([("../../../admin", "CT", None)], [""]),
        ([("1.1", "CT", None), ("", "CT", None)], [""]),
    ],
    ids=["unlisted", "reports", "modality untold", "a UID that is a path", "a UID untold"],
)
def test_what_is_asked_for_follows_from_what_is_listed(series, paths, tmp_path, slices):
    """Series whose modality is told and another are not asked for; without sound UIDs the study is, as a whole."""
    with serving(answering(slices, listing(*series))) as (url, seen):
        take(url, tmp_path)
    asked = [request.path.partition(STUDY)[2] for request in seen if not request.is_search]
    assert asked == paths


def test_an_archive_that_cannot_search_is_asked_for_the_whole_study(tmp_path, slices):
    """QIDO-RS is not everywhere."""
    with serving(lambda r: r.say(501) if r.is_search else r.say_parts(*slices)) as (url, _):
        assert take(url, tmp_path) == ({STUDY: sorted(slices)}, ())


def test_an_archive_that_knows_no_transfer_syntax_by_star_is_asked_without(tmp_path, slices):
    """406 is not the end."""
    either = answering(lambda r: r.say(406) if "transfer-syntax" in r.headers["Accept"] else r.say_parts(*slices))
    with serving(either) as (url, _):
        assert take(url, tmp_path) == ({STUDY: sorted(slices)}, ())


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_archive_of_which_nothing_can_be_had_ends_the_run(status, tmp_path):
    """With the reason of the first study, and no folder left behind."""
    with serving(lambda r: r.say(status)) as (url, _), pytest.raises(ArchiveError, match=f"HTTP {status}"):
        take(url, tmp_path, STUDY, OTHER)
    assert not (tmp_path / "out" / FETCHED).exists()


def test_what_has_come_is_kept_when_the_archive_goes(tmp_path, slices):
    """Those that follow are not even asked for."""
    either = answering(lambda r: r.say_parts(*slices) if f"/{STUDY}" in r.path else r.say(401))
    with serving(either) as (url, seen):
        came, unused = take(url, tmp_path, STUDY, OTHER, "1.2.5")
    assert came == {STUDY: sorted(slices), OTHER: [], "1.2.5": []}
    assert reasons(unused) == [(Reason.NOT_FETCHED, OTHER), (Reason.NOT_FETCHED, "1.2.5")]
    assert not [request for request in seen if "1.2.5" in request.path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is full")
def test_a_full_disk_is_not_the_archive_s_fault(tmp_path, slices, monkeypatch):
    """It ends the run, with the output's exit code."""
    opened = Path.open
    full = lambda path, *how: opened(Path("/dev/full") if path.name == "arriving" else path, *how)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    big = [piece + bytes(100_000) for piece in slices]
    with serving(answering(big)) as (url, _), pytest.raises(OutputError, match="No space left on device"):
        take(url, tmp_path)


def test_passwords_are_asked_for_and_taken_from_netrc(tmp_path, slice_of, monkeypatch):
    """Without them, and with wrong ones, the archive is lost, and the remedy told; with them the study is there."""
    (tmp_path / "pacs").mkdir()
    path = slice_of(tmp_path / "a.dcm", STUDY)
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"me": "hush"}}
    with orthanc(tmp_path / "pacs", **users) as url:
        for password in (None, "wrong"):
            if password:
                (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {password}\n")
            for ask in (lambda: take(url, tmp_path), lambda: list_studies(url)):
                with pytest.raises(Fault, match=r"put name and password into ~/\.netrc"):
                    ask()
            assert "wants other credentials" in send(url, [path]).refused[0][1]
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hush\n")
        assert send(url, [path]).stored == (path,)
        assert take(url, tmp_path) == ({STUDY: [path.read_bytes()]}, ())


# ---- listing ------------------------------------------------------------------------------------
def entry(uid, instances=None, modalities=None):
    return {
        "0020000D": {"vr": "UI", "Value": [uid]},
        **({"00201208": {"vr": "IS", "Value": [instances]}} if instances is not None else {}),
        **({"00080061": {"vr": "CS", "Value": modalities}} if modalities is not None else {}),
    }


def paged(studies, *, page=1000):
    """Answer as an archive does that gives no more than `page` studies at once."""

    def answer(request):
        query = dict(part.split("=") for part in request.path.partition("?")[2].split("&") if "=" in part)
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 1000))
        request.say_json(studies[offset : offset + min(limit, page)])

    return answer


def test_the_studies_of_an_archive_are_listed(pacs, slice_of, tmp_path):
    """Those with CT, each with its instances; of later days where that is asked for."""
    for uid, day, count in (("1.2.71", "20200105", 2), ("1.2.72", "20200301", 1)):
        put(pacs, *(slice_of(tmp_path / f"{uid}{i}.dcm", uid, i, StudyDate=day) for i in range(count)))
    put(pacs, slice_of(tmp_path / "mr.dcm", "1.2.73", Modality="MR"))
    listed = {study.study_uid: study.instances for study in list_studies(pacs)}
    assert listed["1.2.71"] == 2
    assert "1.2.73" not in listed
    assert list_studies(pacs, since=date(2020, 2, 1)) == (ListedStudy(study_uid="1.2.72", instances=1),)


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_all_pages_are_read(page, monkeypatch):
    """However few an archive gives at once."""
    studies = [entry(f"1.2.{i}", i, ["CT"]) for i in range(20)]
    with serving(paged(studies, page=page)) as (url, _):
        listed = list_studies(url)
    assert listed == tuple(ListedStudy(study_uid=f"1.2.{i}", instances=i) for i in range(20))


def test_an_archive_that_knows_no_pages_is_read_once():
    """It begins again each time, and each study is listed once."""
    with serving(lambda r: r.say_json([entry("1.2.1"), entry("1.2.2"), entry("1.2.1")])) as (url, seen):
        assert [study.study_uid for study in list_studies(url)] == ["1.2.1", "1.2.2"]
    assert len(seen) == 2


def test_a_list_without_end_is_refused(monkeypatch):
    """None is passed over in silence."""
    monkeypatch.setattr(dicomweb, "PAGE", 10)
    endless = lambda r: r.say_json([entry(f"1.{len(r.seen)}.{i}", None, ["MR"]) for i in range(10)])  # noqa: E731
    told = r"lists more than 100 studies; ask for fewer days, or for studies by their UIDs"
    with serving(endless) as (url, seen), pytest.raises(ArchiveError, match=told):
        list_studies(url, most=100)
    assert len(seen) == 11


def test_a_list_as_long_as_may_be_is_read():
    """The end is looked for, and found."""
    with serving(paged([entry(f"1.2.{i}", i, ["CT"]) for i in range(20)], page=10)) as (url, _):
        assert len(list_studies(url, most=20)) == 20


@pytest.mark.parametrize(
    ("series", "count"),
    [
        ([("1.1", "CT", 5), ("1.2", "SR", 2), ("1.3", "CT", 1)], 6),
        ([("1.2", "SR", 2)], 0),
        ([("1.1", "CT", 5), ("1.3", "CT", None)], 9),
        ([], 9),
        (None, 9),
    ],
)
def test_the_instances_of_ct_are_counted_as_far_as_they_are_told(series, count):
    """Else all of the study."""

    def answer(request):
        request.say(404) if series is None else request.say_json(listing(*series))

    with serving(answer) as (url, _):
        assert count_ct(url, ListedStudy(study_uid=STUDY, instances=9)) == count


def test_what_an_archive_leaves_unsaid_is_no_reason_to_leave_a_study_out():
    """But for its UID; and what is said is believed where it makes sense."""
    odd = [
        entry("1.2.1"),
        entry("1.2.2", "17", ["MR", "CT"]),
        entry("1.2.3", 5, ["MR"]),
        entry("1.2.4", -3, []),
        entry("1.2.5", "many", ["CT"]),
        entry("../../admin", 1, ["CT"]),
        entry(7.5, 1, ["CT"]),
        {"0020000D": {"vr": "UI"}},
        {"0020000D": []},
        {},
        None,
        "1.2.6",
        {"0020000D": {"Value": {"a": 1}}},
    ]
    with serving(paged(odd)) as (url, _):
        listed = list_studies(url)
    assert [(study.study_uid, study.instances) for study in listed] == [
        ("1.2.1", None),
        ("1.2.2", 17),
        ("1.2.4", None),
        ("1.2.5", None),
    ]


# ---- sending ------------------------------------------------------------------------------------
def _report(ct: Path, path: Path) -> Path:
    """Write a key object selection on a slice, as highdicom makes it; returns its path."""
    source = dcmread(ct)
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
                    "StudyTime", "ReferringPhysicianName"):  # fmt: skip
        setattr(source, keyword, "")
    content = highdicom.ko.KeyObjectSelection(
        document_title=codes.DCM.ForReferringProvider, referenced_objects=[source]
    )
    made = highdicom.ko.KeyObjectSelectionDocument(
        evidence=[source],
        content=content,
        series_instance_uid=f"{source.StudyInstanceUID}.900",
        series_number=900,
        sop_instance_uid=f"{source.StudyInstanceUID}.900.1",
        instance_number=1,
        manufacturer="ich-seq",
    )
    made.save_as(path)
    return path


def test_a_result_is_stored_and_can_be_read_again(pacs, slice_of, tmp_path):
    """By WADO-RS, as the bytes that were sent; sent twice it is there once."""
    ct = slice_of(tmp_path / "ct.dcm", "1.2.9")
    put(pacs, ct)
    result = _report(ct, tmp_path / "ko.dcm")
    for _ in range(2):
        sent = send(pacs, [result])
        assert (sent.stored, sent.refused) == ((result,), ())
    said = requests.get(f"{pacs}/studies/1.2.9/series", params={"Modality": "KO"}, timeout=60).json()
    assert [series["0020000E"]["Value"] for series in said] == [["1.2.9.900"]]
    assert said[0]["00201209"]["Value"] == [1]
    wado = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    answer = requests.get(f"{pacs}/studies/1.2.9/series/1.2.9.900", headers=wado, timeout=60)
    assert result.read_bytes() in answer.content


def test_a_long_result_is_stored_too(pacs, slice_of, tmp_path):
    """Two megabytes, as pictures are."""
    path = slice_of(tmp_path / "a.dcm", "1.2.10", stored=np.zeros((1024, 1024), int))
    assert send(pacs, [path]).stored == (path,)
    assert take(pacs, tmp_path, "1.2.10")[0]["1.2.10"] == [path.read_bytes()]


@pytest.mark.slow
def test_an_archive_that_takes_a_result_slowly_is_waited_for_and_one_that_does_not_is_not(tmp_path, monkeypatch):
    """As long as bytes are taken, however many times as long as it may be silent."""
    monkeypatch.setattr(archive, "SILENCE_S", 0.5)
    (tmp_path / "a.dcm").write_bytes(bytes(24 << 20))

    def slowly(request):
        while request.left and not request.server.ended.wait(0.05):
            request.left -= len(request.rfile.read(min(request.left, 1 << 20)))
        request.say_json(stow())

    with serving(slowly, read=False) as (url, seen):
        began = time.monotonic()
        assert send(url, [tmp_path / "a.dcm"]).stored
        assert time.monotonic() - began > 1
        assert "Transfer-Encoding" not in seen[0].headers
    with serving(lambda r: r.server.ended.wait(), read=False) as (url, _):
        assert "does not get on" in send(url, [tmp_path / "a.dcm"]).refused[0][1]


def test_what_is_no_dicom_is_refused_and_the_rest_is_sent(pacs, slice_of, tmp_path):
    """By the archive itself; what cannot be read is told of as well."""
    good = slice_of(tmp_path / "c.dcm", "1.2.11")
    bad, gone = tmp_path / "a.dcm", tmp_path / "b.dcm"
    bad.write_bytes(b"no DICOM" * 100)
    sent = send(pacs, [bad, gone, good])
    assert sent.stored == (good,)
    assert [path for path, _ in sent.refused] == [bad, gone]
    assert "No such file or directory" in sent.refused[1][1]


def stow(failed=(), stored=("1.2.3",)):
    """An answer of STOW-RS: the reasons of what failed, the UIDs of what was stored."""
    items = [
        {"00081155": {"vr": "UI", "Value": ["Testudo"]}, **({"00081197": {"Value": [r]}} if r else {})} for r in failed
    ]
    done = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]
    return {"00081198": {"vr": "SQ", "Value": items}, "00081199": {"vr": "SQ", "Value": done}}


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, stow(), None),
        (202, stow(), None),
        (200, [stow()], None),
        (200, {"00081199": {"Value": [{}]}}, None),
        (202, stow([0x0122], []), "does not take this SOP class (reason 0122)"),
        (200, stow([0xA701], []), "no space left (reason A701)"),
        (409, stow([0xC123], []), "cannot understand the data set (reason C123)"),
        (409, stow([0xA9F0], []), "does not match its SOP class (reason A9F0)"),
        (409, stow([0x1234], []), "(reason 1234)"),
        (400, stow([None], []), "does not say why"),
        (202, stow([0x0110], ["1.2.3"]), "failed in processing"),
        (409, {}, "refuses (HTTP 409)"),
        (200, {}, "does not say that it stored it"),
        (200, stow([], []), "does not say that it stored it"),
        (200, b"", "does not say that it stored it"),
        (200, b"<html>Testudo</html>", "does not say that it stored it"),
        (200, {"00081199": "Testudo"}, "does not say that it stored it"),
        (200, b"[" * 100_000, "does not say that it stored it"),
        (403, b"Testudo", "HTTP 403"),
        (404, b"Testudo", "takes no results at this URL (HTTP 404); look at it"),
        (410, b"Testudo", "takes no results at this URL (HTTP 410); look at it"),
        (302, b"", "a redirection, which is not followed"),
        (500, b"Testudo", "fails (HTTP 500)"),
    ],
)
def test_a_file_is_stored_if_the_archive_says_so(status, body, told, tmp_path, slices):
    """Anything else is told of, in words of ours."""
    (tmp_path / "a.dcm").write_bytes(slices[0])
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    more = {"Location": "http://127.0.0.1:9/Testudo"} if status == 302 else {}
    with serving(lambda r: r.say(status, data, **more)) as (url, seen):
        sent = send(url, [tmp_path / "a.dcm"])
    assert (sent.refused == ()) is (told is None)
    assert len(sent.stored) == (told is None)
    if told:
        assert told in sent.refused[0][1]
        assert "Testudo" not in sent.refused[0][1]
    assert slices[0] in seen[0].body
    assert len(seen) == (3 if status == 500 else 1)


def test_a_refused_file_does_not_keep_back_the_others_but_a_lost_archive_does(tmp_path, slices):
    """After a refusal of the account no more is sent; each file has its reason."""
    paths = []
    for i, data in enumerate(slices):
        paths.append(tmp_path / f"{i}.dcm")
        paths[-1].write_bytes(data)
    says = [(409, stow([0x0122], [])), (200, stow()), (401, {})]
    with serving(lambda r: r.say_json(says[len(r.seen) - 1][1], says[len(r.seen) - 1][0])) as (url, seen):
        sent = send(url, paths)
    assert sent.stored == (paths[1],)
    assert [path for path, _ in sent.refused] == [paths[0], paths[2], paths[3]]
    assert "Not asked for any more" in sent.refused[2][1]
    assert len(seen) == 3

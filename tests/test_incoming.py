"""Where studies arrive: real folders that change between looks, and a list of studies that is asked."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from ich_seq import UsageError, incoming
from ich_seq.files import short_hash
from ich_seq.incoming import Folder, Listed, UnreachableError
from ich_seq.inputs import list_files
from ich_seq.reasons import Reason
from ich_seq.studies import find_studies


@pytest.fixture
def root(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def read(monkeypatch):
    """The names of the files whose headers are read, as they are read."""
    names, plain = [], incoming.read_headers

    def noted(named, *, workers):
        names.extend(source.path.name for source in named)
        return plain(named, workers=workers)

    monkeypatch.setattr(incoming, "read_headers", noted)
    return names


def test_mixed_studies_are_told_apart_by_their_headers(root, write_slice):
    """Whatever the files are called and wherever they lie; a scout of a study is one of its files."""
    (root / "deep" / "er").mkdir(parents=True)
    write_slice(root / "a", StudyInstanceUID="1")
    write_slice(root / "deep" / "b.dcm", StudyInstanceUID="2")
    write_slice(root / "deep" / "er" / "c.dcm", StudyInstanceUID="1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    folder = Folder(root, 0)
    folder.look(0)
    assert folder.arrivals.ready() == ["1", "2"]
    taken = folder.arrivals.take("1")
    assert list(taken) == ["a", "deep/er/c.dcm"]
    with folder.files("1", taken) as files:
        places = {source.path: source.file for source in files}
        assert places == {root / name: short_hash(name) for name in ("a", "deep/er/c.dcm")}
    assert folder.strays == {}


def test_the_names_and_the_verdicts_are_those_of_predict(root, write_slice):
    """So that both list the same files under the same names, hidden or not."""
    write_slice(root / "sound.dcm")
    write_slice(root / "no study.dcm", drop=["StudyInstanceUID"])
    (root / "notes.txt").write_text("x")
    (root / "bad.dcm").write_text("x")
    (root / "link.dcm").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    for hidden in (True, False):
        folder = Folder(root, 0, hide_names=hidden)
        folder.look(0)
        found = find_studies(root, hide_names=hidden).unused
        assert sorted(folder.strays.values(), key=lambda u: u.file) == list(found)
        assert len(found) == 5


def test_a_header_is_read_once_and_again_when_its_file_has_changed(root, write_slice, read):
    """Looks at files that are known cost no more than their status."""
    for name in ("a.dcm", "b.dcm"):
        write_slice(root / name, SOPInstanceUID=name)
    (root / "stray.dcm").write_text("x")
    folder = Folder(root, 0)
    for now in range(3):
        folder.look(now)
    assert sorted(read) == ["a.dcm", "b.dcm", "stray.dcm"]
    read.clear()
    write_slice(root / "b.dcm", SOPInstanceUID="b.dcm", InstanceNumber=222)
    folder.look(3)
    assert read == ["b.dcm"]


def test_a_half_written_file_becomes_one_of_its_study_when_it_is_whole(root, write_slice):
    """Torn in its first elements it belongs to no study; the study begins to be quiet when it has come."""
    whole = write_slice(root / "b.dcm", SOPInstanceUID="2").read_bytes()
    write_slice(root / "a.dcm", SOPInstanceUID="1")
    (root / "b.dcm").write_bytes(whole[:200])
    folder = Folder(root, 5)
    folder.look(0)
    assert list(folder.strays) == ["b.dcm"]
    (root / "b.dcm").write_bytes(whole)
    folder.look(4)
    assert (folder.strays, folder.arrivals.ready()) == ({}, [])
    folder.look(9)
    assert folder.arrivals.ready() == ["1.2.3.4"]
    assert list(folder.arrivals.take("1.2.3.4")) == ["a.dcm", "b.dcm"]


def test_files_that_are_gone_are_forgotten(root, write_slice):
    """Those of studies and strays alike."""
    write_slice(root / "a.dcm")
    (root / "stray.dcm").write_text("x")
    folder = Folder(root, 0)
    folder.look(0)
    for path in list(root.iterdir()):
        path.unlink()
    folder.look(1)
    assert (len(folder.arrivals), folder.strays, folder.arrivals.ready()) == (0, {}, [])


def test_a_folder_that_is_gone_for_a_while_is_unreachable_and_nothing_is_forgotten(root, write_slice, read):
    """A share that hiccups: when it is there again, no header is read anew."""
    write_slice(root / "a.dcm")
    folder = Folder(root, 5)
    folder.look(0)
    away = root.rename(root.with_name("away"))
    with pytest.raises(UnreachableError, match=r"in cannot be read: No such file or directory\."):
        folder.look(3)
    away.rename(root)
    folder.look(5)
    assert folder.arrivals.ready() == ["1.2.3.4"]
    assert read == ["a.dcm"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_listed_and_tried_again_at_each_look(root, write_slice):
    """Its rights change neither its length nor its time."""
    path = write_slice(root / "a.dcm")
    path.chmod(0)
    folder = Folder(root, 0)
    folder.look(0)
    assert folder.strays["a.dcm"].reason == Reason.UNREADABLE
    path.chmod(0o600)
    folder.look(1)
    assert (folder.strays, folder.arrivals.ready()) == ({}, ["1.2.3.4"])


def test_a_file_that_cannot_be_opened_is_tried_again_though_nothing_of_it_changed(root, write_slice, monkeypatch):
    """As for an error of the disk that passes."""
    from ich_seq.reasons import Unused

    write_slice(root / "a.dcm")
    folder, plain = Folder(root, 0), incoming.read_headers
    monkeypatch.setattr(
        incoming,
        "read_headers",
        lambda named, workers: (x for x in [(Unused(s.file, Reason.UNREADABLE, ""),) for s in named]),
    )
    folder.look(0)
    assert list(folder.strays) == ["a.dcm"]
    monkeypatch.setattr(incoming, "read_headers", plain)
    folder.look(1)
    assert (folder.strays, folder.arrivals.ready()) == ({}, ["1.2.3.4"])


def test_the_folder_of_results_is_passed_over_and_links_lead_once(root, write_slice):
    """As with every other command."""
    write_slice(root / "a.dcm")
    (root / "out").mkdir()
    (root / "out" / "page.html").write_text("x")
    (root / "loop").symlink_to(root)
    folder = Folder(root, 0, skip=root / "out")
    folder.look(0)
    assert list(folder.arrivals.take("1.2.3.4")) == ["a.dcm"]
    assert (len(folder.arrivals), folder.strays) == (1, {})


@pytest.mark.parametrize("root_name", [".", "in/", "in"])
def test_the_folder_may_be_named_in_any_way(root, write_slice, monkeypatch, root_name):
    """Names are those below it."""
    write_slice(root / "a.dcm")
    monkeypatch.chdir(root if root_name == "." else root.parent)
    from pathlib import Path

    folder = Folder(Path(root_name), 0)
    folder.look(0)
    assert list(folder.arrivals.take("1.2.3.4")) == ["a.dcm"]


@pytest.fixture
def server(tmp_path, write_slice):
    """A folder a study, as a server lists and gives them."""
    for uid, count in (("1", 2), ("2", 1)):
        (tmp_path / "server" / uid).mkdir(parents=True)
        for i in range(count):
            write_slice(tmp_path / "server" / uid / f"{i}.dcm", StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.{i}")
    return tmp_path / "server"


@pytest.fixture
def listed(server, tmp_path):
    """A source that asks it; what was fetched is gone when the block ends."""

    def listing():
        if not server.exists():
            raise UsageError("The server does not answer.")
        return {path.name: len(list_files(path)) for path in sorted(server.iterdir())}

    @contextmanager
    def fetch(uid):
        if not (server / uid).exists():
            raise UsageError("No such study.")
        yield SimpleNamespace(folder=shutil.copytree(server / uid, tmp_path / "fetched"), unused=())
        shutil.rmtree(tmp_path / "fetched")

    return Listed(listing, fetch, 5)


def test_a_listed_study_is_ready_when_its_number_of_instances_stayed_the_same(listed, server, write_slice):
    """As one in a folder is whose files do."""
    listed.look(0)
    write_slice(server / "2" / "more.dcm", SOPInstanceUID="9")
    listed.look(4)
    listed.look(5)
    assert listed.arrivals.ready() == ["1"]
    taken = listed.arrivals.take("1")
    with listed.files("1", taken) as files:
        assert [source.file for source in files] == [short_hash("0.dcm"), short_hash("1.dcm")]
        assert all(source.path.exists() for source in files)
    assert not any(source.path.exists() for source in files)
    listed.look(9)
    assert listed.arrivals.ready() == ["2"]


def test_a_server_that_does_not_answer_is_unreachable(listed, server):
    """For a listing and for a study alike; nothing is forgotten."""
    listed.look(0)
    away = server.rename(server.with_name("away"))
    with pytest.raises(UnreachableError, match="does not answer"):
        listed.look(1)
    with pytest.raises(UnreachableError, match="No such study"), listed.files("1", {}):
        pass
    away.rename(server)
    listed.look(5)
    assert listed.arrivals.ready() == ["1", "2"]

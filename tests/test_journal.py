"""The journal of a watch: what is read back of it, torn or not, and that a study is sent once."""

from __future__ import annotations

import json

import pytest

from ich_seq.journal import BEGUN, ENDED, SENDING, SENT, Journal, read_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "watch.jsonl"


def test_what_was_noted_last_is_known_after_a_restart(path):
    """The last key of each study and kind of event, and who got which number."""
    journal = Journal(path)
    journal.note(BEGUN, "1", "old")
    journal.note(ENDED, "1", "old", patient_key="p", patient=1)
    journal.note(BEGUN, "1", "new")
    journal.note(ENDED, "2", "other", patient_key="q", patient=journal.number_of("q"))
    for known in (journal, Journal(path)):
        assert [known.key_of(event, "1") for event in (BEGUN, ENDED, SENT)] == ["new", "old", ""]
        assert [known.number_of(patient) for patient in ("p", "q", "somebody")] == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_torn_last_line_is_lost_and_no_other(path, cut):
    """Wherever a kill tears it; and the next line stands by itself."""
    journal = Journal(path)
    journal.note(ENDED, "1", "a")
    whole = path.read_bytes()
    journal.note(ENDED, "2", "b")
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    again = Journal(path)
    assert (again.key_of(ENDED, "1"), again.key_of(ENDED, "2")) == ("a", "b" if cut >= len(whole) else "")
    again.note(ENDED, "3", "c")
    assert [Journal(path).key_of(ENDED, study) for study in "13"] == ["a", "c"]


def test_a_journal_that_is_whole_is_not_touched_by_opening_it(path):
    """A watch that is started and ended a thousand times leaves no thousand lines."""
    Journal(path).note(ENDED, "1", "a")
    before = path.read_bytes()
    Journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", ["", "null", "[]", "7", "{}", '{"event": 1, "study": "1", "key": "a"}', "not JSON", '{"a": NaN}', "\x00"]
)
def test_a_line_that_is_none_of_ours_says_nothing(path, line):
    """Whatever stands there, the other lines count."""
    Journal(path).note(ENDED, "1", "a")
    with path.open("a") as file:
        file.write(line + "\n")
    journal = Journal(path)
    journal.note(ENDED, "2", "b")
    assert [Journal(path).key_of(ENDED, study) for study in "12"] == ["a", "b"]


def test_no_journal_has_no_lines(path):
    """Nor has what is no file."""
    assert list(read_lines(path)) == []
    assert list(read_lines(path.parent)) == []


def test_a_study_is_sent_once_for_its_files(path):
    """Not again after a restart, but again when its files are others."""
    sent = []
    for _ in range(2):
        journal = Journal(path)
        journal.deliver("1", "a", sent.append)
        journal.deliver("1", "a", sent.append)
    Journal(path).deliver("1", "b", sent.append)
    assert sent == [False, False]


def test_a_sending_that_broke_off_is_unsure_and_noted_once(path):
    """The receiver has to be asked; a server that is down for days does not fill the journal."""
    sure = []

    def fail(unsure):
        sure.append(unsure)
        raise OSError(104, "Connection reset")

    for _ in range(3):
        with pytest.raises(OSError, match="reset"):
            Journal(path).deliver("1", "a", fail)
    Journal(path).deliver("1", "a", sure.append)
    assert sure == [False, True, True, True]
    assert [row["event"] for row in map(json.loads, path.read_text().splitlines())] == [SENDING, SENT]

"""What has arrived: every order of arrivals, changes and deletions, held against what can be read off all snapshots."""

from __future__ import annotations

import gc
import tracemalloc
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_seq.arrivals import Arrivals, Change, Stamp, compare

QUIET_S = 4
NAMES = "abcdef"
STUDY_OF = {"a": "1.1", "b": "1.1", "c": "1.2", "d": "1.2", "e": "1.3", "f": ""}
"""To which study each file belongs; the last one is a stray. The other content of `e` is of another study."""

snapshots = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1), max_size=len(NAMES))
looks = st.lists(st.tuples(st.integers(1, 5), snapshots, st.booleans()), max_size=12)


def study_of(name, version):
    return "1.2" if (name, version) == ("e", 1) else STUDY_OF[name]


def look(arrivals, now, snapshot):
    """Look, and tell at once of every file that asks for it; returns which did."""
    untold = arrivals.look(now, ((name, Stamp(version, 0)) for name, version in snapshot.items()))
    for name in untold:
        arrivals.tell(name, study_of(name, snapshot[name]))
    return untold


def ready_by_history(history, takes):
    """The studies that are ready at the last of (time, snapshot) pairs; `takes` are (look, study) pairs."""
    ready = []
    for study in sorted({*STUDY_OF.values()} - {""}):
        changed = None
        for number, (_, snapshot) in enumerate(history):
            before = history[number - 1][1] if number else {}
            own = {name for name, version in snapshot.items() if study_of(name, version) == study}
            if not own:
                changed = None
            elif any(before.get(name) != snapshot[name] for name in own):
                changed = number
        taken = [at for at, uid in takes if uid == study and changed is not None and at >= changed]
        if changed is not None and not taken and history[-1][0] - history[changed][0] >= QUIET_S:
            ready.append((history[changed][0], study))
    return [study for _, study in sorted(ready)]


@given(looks)
def test_a_study_is_ready_exactly_when_it_was_quiet_and_not_taken_since(steps):
    """Whatever appears, changes and goes between; those that wait longest come first."""
    arrivals, now, history, takes = Arrivals(QUIET_S), 0, [], []
    for number, (after, snapshot, take) in enumerate(steps):
        now += after
        look(arrivals, now, snapshot)
        history.append((now, snapshot))
        ready = arrivals.ready()
        assert ready == ready_by_history(history, takes)
        for study in ready if take else ready[:1]:
            own = {n: Stamp(v, 0) for n, v in snapshot.items() if study_of(n, v) == study}
            assert arrivals.take(study) == dict(sorted(own.items()))
            takes.append((number, study))
        assert len(arrivals) == len(snapshot)
        assert all((name in arrivals) == (name in snapshot) for name in NAMES)


@given(looks)
def test_only_new_and_changed_files_are_to_be_read(steps):
    """One that is as it was at the last look never is."""
    arrivals, now, before = Arrivals(QUIET_S), 0, {}
    for after, snapshot, _ in steps:
        now += after
        assert look(arrivals, now, snapshot) == [n for n, v in snapshot.items() if before.get(n) != v]
        before = snapshot


@given(looks, st.integers(0, 3))
def test_no_study_is_lost_and_none_done_twice_for_the_same_files(steps, restart_every):
    """As a watch works, which now and then is started anew and knows nothing but what results were made of."""
    arrivals, now, made_of, done = Arrivals(QUIET_S), 0, defaultdict(dict), []
    rest = [(QUIET_S, steps[-1][1], True)] * 2 if steps else []
    for number, (after, snapshot, _) in enumerate([*steps, *rest]):
        now += after
        if restart_every and number < len(steps) and number % (restart_every + 1) == restart_every:
            arrivals = Arrivals(QUIET_S)
        look(arrivals, now, snapshot)
        for study in arrivals.ready():
            files = {name: str(stamp.size) for name, stamp in arrivals.take(study).items()}
            if compare(made_of[study], files) != Change.NONE:
                done.append((study, files))
                made_of[study] = files
    assert arrivals.ready() == []
    for name, version in steps[-1][1].items() if steps else ():
        if study := study_of(name, version):
            assert made_of[study].get(name) == str(version)
    for study in made_of:
        own = [files for uid, files in done if uid == study]
        assert all(not later.items() <= earlier.items() for earlier, later in pairwise(own))


def test_a_file_that_nobody_can_tell_of_asks_again_and_holds_nothing_up():
    """Such as one that cannot be opened yet; its study begins to be quiet once it is told."""
    arrivals = Arrivals(QUIET_S)
    files = [("a", Stamp(1, 1)), ("b", Stamp(1, 1))]
    for now in (0, QUIET_S):
        assert arrivals.look(now, files) == (["a", "b"] if now == 0 else ["b"])
        if now == 0:
            arrivals.tell("a", "1")
    assert arrivals.ready() == ["1"]
    arrivals.tell("b", "1")
    assert arrivals.ready() == []


def test_a_snapshot_that_breaks_off_makes_nothing_be_forgotten():
    """A share that is gone for a minute has not lost its files."""

    def breaking():
        yield "a", Stamp(1, 0)
        raise OSError(116, "Stale file handle")

    arrivals = Arrivals(QUIET_S)
    look(arrivals, 0, {"a": 1, "b": 1})
    with pytest.raises(OSError, match="Stale"):
        arrivals.look(1, breaking())
    assert len(arrivals) == 2
    assert look(arrivals, QUIET_S, {"a": 1, "b": 1}) == []
    assert arrivals.ready() == ["1.1"]


def test_a_study_that_is_given_back_is_ready_after_another_quiet_time():
    """One that could not be worked through, though none of its files changed."""
    arrivals = Arrivals(QUIET_S)
    look(arrivals, 0, {"a": 0})
    look(arrivals, QUIET_S, {"a": 0})
    arrivals.take("1.1")
    arrivals.give_back("1.1")
    arrivals.give_back("gone")
    assert (arrivals.ready(), arrivals.waiting()) == ([], {"1.1"})
    look(arrivals, 2 * QUIET_S, {"a": 0})
    assert arrivals.ready() == ["1.1"]


files = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("12"))


@given(files, files)
def test_what_files_are_to_those_of_a_result(made_of, there):
    """Nothing new is NONE; something new is GROWN where every old file still has its name, else PARTED."""
    new = [name for name in there if made_of.get(name) != there[name]]
    gone = [name for name in made_of if name not in there]
    assert compare(made_of, there) == (Change.NONE if not new else Change.PARTED if gone else Change.GROWN)


def router_files():
    """20,000 files, named as a router names them."""
    for i in range(20_000):
        yield f"2026/11/26/CT.1.2.840.113619.2.55.3.604688119.{i}.dcm", Stamp(526_000 + i, 10**18 + i)


def test_what_is_known_of_a_file_takes_little_memory():
    """20,000 files of 100 studies: below 500 bytes each, the name included; another look adds nothing."""
    gc.collect()
    tracemalloc.start()
    arrivals = Arrivals(QUIET_S)
    for name in arrivals.look(0, router_files()):
        arrivals.tell(name, f"1.2.840.{int(name.rsplit('.', 2)[1]) // 200}")
    used, _ = tracemalloc.get_traced_memory()
    assert arrivals.look(1, router_files()) == []
    later, _ = tracemalloc.get_traced_memory()
    assert arrivals.look(9, []) == []
    empty, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert later <= used + 1000
    assert later < 20_000 * 500
    assert empty < later / 10

"""Several processes that share out studies leave what one leaves, whatever happens to any of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ranks
from attacks.scene import RESULTS, tree

from ich_seq import OutputError, shared_folder
from ich_seq.distributed import Group
from ich_seq.prediction_parts import PART
from ich_seq.shared_folder import TURN, Turn, held_together
from ich_seq.store import JOURNAL
from ich_seq.studies import find_studies

pytest_plugins = ["grounds"]

pytestmark = pytest.mark.slow

COMMANDS = ("extract-features", "predict")
LEFT = {".lock", JOURNAL}
"""Hidden files that a run of one process leaves too."""


def hidden(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.name.startswith(".")}


def with_dicom(arguments: list[str], dicom: Path) -> list[str]:
    return [arguments[0], str(dicom), *arguments[2:]]


# The same bytes


@pytest.mark.parametrize(("command", "size"), [("extract-features", 2), ("predict", 2)])
def test_a_group_leaves_the_bytes_of_one_process(scene, zygote, tmp_path, command, size):
    """Every file of the result, pages and records among them; the first process alone says so."""
    done = ranks.run(zygote, scene.arguments(command, tmp_path / "out"), size)
    assert [d.code for d in done] == [0] * size, done
    assert tree(tmp_path / "out") == tree(scene.root / RESULTS[command])
    assert hidden(tmp_path / "out") <= LEFT
    assert done[0].stdout.startswith("4 studies")
    assert [d.stdout + d.stderr for d in done[1:]] == [""] * (size - 1)


@pytest.fixture(scope="module")
def broken(scene, cut_frame, tmp_path_factory) -> Path:
    """The scene's files: one study has no slice that can be decoded, one lacks one, and a note lies beside them."""
    dicom = shutil.copytree(scene.dicom, tmp_path_factory.mktemp("broken") / "dicom")
    first, second, *_ = ([header.path for header in study.slices] for study in find_studies(dicom).studies)
    for path in [*first, second[3]]:
        cut_frame(path)
    (dicom / "note.txt").write_text("no DICOM")
    return dicom


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_slices_cost_themselves_in_whosever_share_they_are(scene, zygote, broken, tmp_path, command):
    """A study without slices leaves no row, patients keep their numbers, and rejected.csv and counts are the same."""
    arguments = with_dicom(scene.arguments(command, tmp_path / "one"), broken)
    assert zygote.run(arguments).code == 3
    done = ranks.run(zygote, with_dicom(scene.arguments(command, tmp_path / "two"), broken), 2)
    assert [d.code for d in done] == [0, 0], done
    assert "rejected (decode" in done[0].stderr
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def test_more_processes_than_studies_have_nothing_to_do(scene, zygote, tmp_path):
    """Five processes share four studies."""
    done = ranks.run(zygote, scene.arguments("predict", tmp_path / "out"), 5)
    assert [d.code for d in done] == [0] * 5, done
    assert tree(tmp_path / "out") == tree(scene.root / "results")


# Killed, and gone on with


@pytest.mark.parametrize(("victim", "size", "then"), [(1, 2, 1), (0, 2, 1), (1, 2, 3), (1, 3, 2)])
def test_whoever_is_killed_the_others_end_and_any_group_goes_on(scene, zygote, tmp_path, victim, size, then):
    """SIGKILL at a random moment; whole studies are not embedded again, and the end is that of one process."""
    out = tmp_path / "out"
    arguments = scene.arguments("extract-features", out)
    started = ranks.start(zygote, [arguments] * size)
    ranks.until(lambda: bool(ranks.journalled(out)))
    time.sleep(random.Random(victim * 10 + size).uniform(0, 0.15))
    os.kill(started[victim].pid, signal.SIGKILL)
    done = [zygote.wait(running) for running in started]
    assert done[victim].code in (0, 128 + signal.SIGKILL)  # it may have been done
    for other in (d for rank, d in enumerate(done) if rank != victim):
        assert other.code in (0, OutputError.exit_code), other
        assert "bug" not in other.stderr
        assert other.code == 0 or "has ended" in other.stderr
    whole = {name: (out / name).stat().st_mtime_ns for name in ranks.journalled(out)}
    again = ranks.run(zygote, arguments, then) if then > 1 else [zygote.run(arguments)]
    assert {d.code for d in again} == {0}, again
    assert tree(out) == tree(scene.root / "features")
    assert hidden(out) <= LEFT
    assert whole
    assert {name: (out / name).stat().st_mtime_ns for name in whole} == whole


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_any_moment_leave_nothing_that_the_next_group_stumbles_over(scene, zygote, tmp_path, seed):
    """Three groups of random sizes lose a random process at a random moment, a fourth ends with the same bytes."""
    chance, command = random.Random(seed), COMMANDS[seed % 2]
    arguments = scene.arguments(command, tmp_path / "out")
    for _ in range(3):
        size = chance.randint(2, 3)
        started = ranks.start(zygote, [arguments] * size)
        time.sleep(chance.uniform(0, 2))
        os.kill(started[chance.randrange(size)].pid, signal.SIGKILL)
        done = [zygote.wait(running) for running in started]
        assert all("bug" not in d.stderr for d in done), done
    done = ranks.run(zygote, arguments, chance.randint(2, 3))
    assert {d.code for d in done} == {0}, done
    assert tree(tmp_path / "out") == tree(scene.root / RESULTS[command])
    assert hidden(tmp_path / "out") <= LEFT


def test_parts_of_a_killed_prediction_are_gone_after_the_next(scene, zygote, tmp_path):
    """Its parts, half written or whole, its turn and its pages; what somebody else left is spared."""
    out = tmp_path / "out"
    (out / "report").mkdir(parents=True)
    part = f".part-{'0f' * 8}-3-slices.csv"
    assert PART.fullmatch(part)
    for name in (part, f"{part}.ich-seq-partial", TURN, f"report/{'a' * 16}.html.ich-seq-partial", ".part-time.csv"):
        (out / name).write_text("half")
    assert {d.code for d in ranks.run(zygote, scene.arguments("predict", out), 2)} == {0}
    assert (out / ".part-time.csv").read_text() == "half"
    (out / ".part-time.csv").unlink()
    assert hidden(out) <= LEFT
    assert tree(out) == tree(scene.root / "results")


# Refusals and signals


def test_a_refusal_that_all_share_is_told_once(scene, zygote, tmp_path):
    """No bundle: each process ends with 2, the first one says why."""
    arguments = ["predict", str(scene.dicom), "--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = ranks.run(zygote, arguments, 3)
    assert [d.code for d in done] == [2, 2, 2]
    assert "none" in done[0].stderr
    assert "Process" not in done[0].stderr
    assert done[1].stderr == done[2].stderr == ""


def test_a_bundle_that_is_damaged_in_the_library_is_told_of_once(scene, zygote, tmp_path):
    """What a name leads to is looked up by all, and refused by all together."""
    (tmp_path / "library" / "ours").mkdir(parents=True)
    arguments = ["predict", str(scene.dicom), "--bundle", "ours", "--out", str(tmp_path / "out")]
    started = ranks.start(zygote, [arguments] * 2, ICH_SEQ_WEIGHTS=str(tmp_path / "library"))
    done = [zygote.wait(running) for running in started]
    assert [d.code for d in done] == [2, 2], done
    assert "weights add --replace" in done[0].stderr.replace("\n  ", " ")
    assert done[1].stderr == ""


def test_a_refusal_of_one_machine_names_it(scene, zygote, tmp_path):
    """A folder that only one process does not see ends all, and the first one says which process that is."""
    sound = scene.arguments("extract-features", tmp_path / "out")
    blind = with_dicom(sound, tmp_path / "not mounted")
    done = [zygote.wait(running) for running in ranks.start(zygote, [sound, blind])]
    assert [d.code for d in done] == [2, 2], done
    assert "Process 1, on " in done[0].stderr
    assert "not mounted cannot be read" in done[0].stderr.replace("\n  ", " ")
    assert done[1].stderr == ""


@pytest.mark.parametrize(("command", "other"), [("extract-features", "--phi"), ("predict", "--no-report")])
def test_processes_that_would_not_make_the_same_bytes_refuse(scene, zygote, tmp_path, command, other):
    """Another option, network, version or kind of processor on one machine would mix two results in one folder."""
    arguments = scene.arguments(command, tmp_path / "out")
    done = [zygote.wait(running) for running in ranks.start(zygote, [arguments, [*arguments, other]])]
    assert [d.code for d in done] == [2, 2], done
    assert "would make other bytes" in done[0].stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_input_without_a_slice_ends_all_with_4(scene, zygote, tmp_path, command):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.txt").write_text("no DICOM")
    arguments = with_dicom(scene.arguments(command, tmp_path / "out"), tmp_path / "notes")
    done = ranks.run(zygote, arguments, 2)
    assert [d.code for d in done] == [4, 4], done
    assert "None of the 1 files" in done[0].stderr
    assert done[1].stderr == ""
    assert (tmp_path / "out" / "rejected.csv").is_file()


def test_a_folder_that_another_run_holds_is_refused_by_all(scene, zygote, tmp_path):
    with held_together(tmp_path / "out", Group()):
        done = ranks.run(zygote, scene.arguments("predict", tmp_path / "out"), 2)
    assert [d.code for d in done] == [5, 5], done
    assert "Another process is writing" in done[0].stderr


@pytest.mark.parametrize("waiting", ["to join", "for its peer"])
def test_sigterm_ends_a_process_that_waits_within_five_seconds(scene, zygote, tmp_path, waiting):
    """Whether the other has not come yet or works on: no call into gloo keeps the signal from being heard."""
    arguments = scene.arguments("extract-features", tmp_path / "out")
    first, second = ranks.start(zygote, [arguments, arguments])
    if waiting == "for its peer":
        ranks.until(lambda: bool(ranks.journalled(tmp_path / "out")))
    os.kill(second.pid, signal.SIGSTOP)
    time.sleep(0.5)
    try:
        os.kill(first.pid, signal.SIGTERM)
        began = time.monotonic()
        done = zygote.wait(first)
        assert done.code == 128 + signal.SIGTERM, done
        assert time.monotonic() - began < 5
    finally:
        os.kill(second.pid, signal.SIGKILL)
        zygote.wait(second)


# Whose turn it is


def test_a_process_of_an_older_run_ends_before_it_writes_on(tmp_path):
    """Another run has the folder, or the folder is nobody's: either way its turn is over."""
    mine = Turn(folder=tmp_path, name="0" * 16, group=Group(1, 2))
    (tmp_path / TURN).write_text("0" * 16)
    mine.check()
    for spoil in (lambda: (tmp_path / TURN).write_text("f" * 16), (tmp_path / TURN).unlink, (tmp_path / TURN).mkdir):
        spoil()
        with pytest.raises(OutputError, match="has ended, or another has taken"):
            mine.check()


def test_a_process_that_sees_another_folder_says_so(tmp_path, monkeypatch):
    """It looks for a while, as a file server may be late; a turn that comes in time is found, another is refused."""
    monkeypatch.setattr(shared_folder, "SEEN_S", 0.3)
    monkeypatch.setattr(shared_folder, "LOOK_AGAIN_S", 0.05)
    mine = Turn(folder=tmp_path, name="0" * 16, group=Group(1, 2))
    with pytest.raises(OutputError, match="not the folder that the first process has"):
        mine.begin()
    late = threading.Timer(0.1, (tmp_path / TURN).write_text, ["0" * 16])
    late.start()
    mine.begin()
    late.join()
    Turn(folder=tmp_path / "nowhere", name="f" * 16, group=Group()).begin()


def test_a_run_of_one_ends_the_turn_of_those_before(tmp_path):
    """So a process that a killed torchrun left behind does not write beside it."""
    (tmp_path / TURN).write_text("0" * 16)
    with held_together(tmp_path, Group()) as turn:
        turn.check()
        assert not (tmp_path / TURN).exists()


def test_a_process_that_was_left_behind_stops_when_the_next_run_begins(scene, zygote, tmp_path):
    """The first process is killed while the other sleeps; the next run is whole, and the sleeper ends on waking."""
    out = tmp_path / "out"
    arguments = scene.arguments("extract-features", out)
    first, second = ranks.start(zygote, [arguments, arguments])
    ranks.until((out / TURN).exists)
    os.kill(second.pid, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    zygote.wait(first)
    assert zygote.run(arguments).code == 0
    before = tree(out)
    os.kill(second.pid, signal.SIGCONT)
    woken = zygote.wait(second)
    assert woken.code == OutputError.exit_code, woken
    assert tree(out) == before == tree(scene.root / "features")


# Under torchrun itself


def torchrun(size: int, arguments: list[str], *more: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *more]
    return [*run, "-m", "ich_seq.cli", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("command", COMMANDS)
def test_torchrun_leaves_the_bytes_of_one_process(scene, tmp_path, command):
    """Two processes, one result on stdout, exit code 0."""
    words = torchrun(2, [*scene.arguments(command, tmp_path / "out"), "--json"])
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"studies": 4') == 1
    assert tree(tmp_path / "out") == tree(scene.root / RESULTS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_torchrun_starts_a_group_again_that_lost_a_process(scene, tmp_path, command):
    """--max-restarts 2: one is killed once it works, the next group ends with the bytes of one process."""
    out = tmp_path / "out"
    words = torchrun(2, scene.arguments(command, out), "--max-restarts", "2")
    with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        ranks.until((out / TURN).exists, 120)
        turn = (out / TURN).read_text()
        os.kill(ranks.processes_of(out)["1"], signal.SIGKILL)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert turn
    assert tree(out) == tree(scene.root / RESULTS[command])
    assert hidden(out) <= LEFT

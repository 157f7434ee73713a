"""The command line: exit codes, what goes to which stream, and that its help is whole."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ich_seq.cli import cli
from ich_seq.cnn_training import CnnSummary
from ich_seq.commands import OFFLINE
from ich_seq.extraction import ExtractionSummary
from ich_seq.files import short_hash
from ich_seq.prediction import PredictionSummary
from ich_seq.signals import INTERRUPTED
from ich_seq.studies import Counts

COMMANDS = [cli, *cli.commands.values()]
OUT = Path("out")
DONE = {
    "extract-features": (
        "ich_seq.extraction",
        "extract_features",
        lambda counts: ExtractionSummary(out=OUT, studies=1, counts=counts, in_sample=0),
    ),
    "predict": (
        "ich_seq.prediction",
        "predict",
        lambda counts: PredictionSummary(out=OUT, studies=1, counts=counts, results=()),
    ),
    "train-cnn": (
        "ich_seq.cnn_training",
        "train_cnn",
        lambda counts: CnnSummary(
            out=OUT,
            folds=(0,),
            final=False,
            studies=1,
            slices=9,
            also_studies=0,
            unlabelled=(),
            counts=counts,
            figures={},
        ),
    ),
}
"""Each command that reads DICOM: its call, and what that returns for some counts."""


def run(*arguments: object) -> click.testing.Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_and_option_has_help(command: click.Command) -> None:
    """A flag without a word on what it does is no flag."""
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_a_folder_that_does_not_exist_ends_with_2_and_its_name(tmp_path: Path) -> None:
    """Bad usage has its own exit code, and the message names what to mend."""
    result = run("extract-features", tmp_path / "nowhere", "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 2
    assert "nowhere cannot be read (No such file or directory)" in result.stderr
    assert result.stdout == ""


def test_a_folder_without_ct_ends_with_4_and_lists_every_file(tmp_path: Path) -> None:
    """Nothing usable is not success, and rejected.csv still says why for each file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"not DICOM at all")
    (tmp_path / "in" / "notes.txt").write_text("hello")
    settings = ["--set", "slices.size=32", "--set", "encoder.weights=random"]
    result = run("extract-features", tmp_path / "in", "--out", tmp_path / "out", "--quiet", *settings)
    assert result.exit_code == 4
    assert "None of the 2 files is a usable CT slice (not_dicom 1, other_file 1); see" in result.stderr
    listed = (tmp_path / "out" / "rejected.csv").read_text().splitlines()
    assert sorted(line.split(",")[:3] for line in listed[1:]) == sorted(
        [
            [short_hash("a.dcm"), "rejected", "not_dicom"],
            [short_hash("notes.txt"), "excluded", "other_file"],
        ]
    )


@pytest.mark.parametrize("command", ["extract-features", "predict", "train-cnn"])
@pytest.mark.parametrize(
    ("rejected", "torchrun", "code"), [(0, False, 0), (2, False, 3), (0, True, 0), (2, True, 0)], ids=str
)
def test_rejected_files_end_with_3_but_not_under_torchrun(command, rejected, torchrun, code, monkeypatch) -> None:
    """There any other code than 0 is a failure and ends the other processes; stderr says it both ways."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    reasons = {"decode": rejected} if rejected else {}
    counts = Counts(files=9, used=9 - rejected, excluded=0, rejected=rejected, reasons=reasons)
    module, name, summary = DONE[command]
    monkeypatch.setattr(import_module(module), name, lambda *_, **__: summary(counts))
    more = {"extract-features": [], "predict": ["--bundle", "bundle"], "train-cnn": ["--labels", "labels.csv"]}
    result = run(command, "in", "--out", "out", "--quiet", *more[command])
    assert result.exit_code == code
    assert ("Of 9 files 0 were excluded and 2 rejected (decode 2); out/rejected.csv" in result.stderr) is bool(rejected)
    assert result.stdout.endswith("-> out\n")


def test_lost_frames_of_files_that_were_used_end_with_3(monkeypatch) -> None:
    """A file that was used in part counts as used, but what it lost is no success, and stderr says it."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    counts = Counts(files=9, used=9, excluded=0, rejected=0, reasons={}, lost_frames=2)
    module, name, summary = DONE["predict"]
    monkeypatch.setattr(import_module(module), name, lambda *_, **__: summary(counts))
    result = run("predict", "in", "more", "--out", "out", "--quiet", "--bundle", "bundle")
    assert result.exit_code == 3
    assert "Of files that were used 2 frames were rejected; out/rejected.csv lists each." in result.stderr


def test_an_output_that_cannot_be_written_ends_with_5(tmp_path: Path) -> None:
    """A full or forbidden output is neither a usage error nor a bug."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"x")
    settings = ["--set", "slices.size=32", "--set", "encoder.weights=random"]
    result = run("extract-features", tmp_path / "in", "--out", tmp_path / "file" / "out", "--quiet", *settings)
    assert result.exit_code == 5
    assert str(tmp_path / "file" / "out") in result.stderr


def test_an_unknown_setting_ends_with_2_and_a_suggestion(tmp_path: Path) -> None:
    """A typo in a setting must never be a silent default."""
    result = run("train-rnn", tmp_path, "--labels", "x.csv", "--out", tmp_path / "o", "--set", "train.epoch=3")
    assert result.exit_code == 2
    assert "did you mean train.epochs?" in result.stderr


def test_a_missing_bundle_ends_with_2(tmp_path: Path) -> None:
    """Predicting without a bundle says what a bundle is and who writes it."""
    result = run("predict", tmp_path, "--bundle", tmp_path, "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "train-rnn" in result.stderr


def test_a_folder_that_is_no_run_of_train_cnn_ends_with_2(tmp_path: Path) -> None:
    """`--cnn` of another folder says what is missing there and who writes it, and nothing is begun."""
    (tmp_path / "in").mkdir()
    result = run("extract-features", tmp_path / "in", "--cnn", tmp_path / "in", "--out", tmp_path / "o", "--quiet")
    assert result.exit_code == 2
    assert "is not a run of train-cnn" in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["extract-features", "predict"])
def test_an_unknown_engine_ends_with_2_and_the_known_ones(tmp_path: Path, command: str) -> None:
    """A typo in an engine's name is refused with the names there are."""
    bundle = ["--bundle", tmp_path] if command == "predict" else []
    result = run(command, tmp_path, *bundle, "--out", tmp_path / "o", "--engine", "openvin")
    assert result.exit_code == 2
    assert "'torch', 'openvino'" in result.stderr


@pytest.mark.parametrize("fold", ["one", "-1", "1.0", ""])
def test_a_fold_that_is_no_number_ends_with_2(tmp_path: Path, fold: str) -> None:
    """`--fold` takes a whole number from 0, all or final; anything else is refused with what was given."""
    result = run("train-cnn", tmp_path, "--labels", "x.csv", "--out", tmp_path / "o", f"--fold={fold}")
    assert result.exit_code == 2
    assert f"given: {fold}" in result.stderr


def test_a_cuda_device_that_is_not_there_ends_with_2(tmp_path: Path) -> None:
    """Asking for a processor the machine lacks is refused, not silently replaced."""
    result = run("predict", tmp_path, "--bundle", tmp_path, "--out", tmp_path / "o", "--device", "cuda:99")
    assert result.exit_code == 2
    assert "--device cuda:99" in result.stderr


def test_a_bug_of_ours_ends_with_1_and_tells_where_but_not_what(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unforeseen exception is no user's mistake; its text may quote a patient and is shown on demand only."""
    import ich_seq.extraction

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("Haemorrhagicus^Testudo")

    monkeypatch.setattr(ich_seq.extraction, "extract_features", broken)
    for debug in (False, True):
        if debug:
            monkeypatch.setenv("ICH_SEQ_DEBUG", "1")
        result = run("extract-features", tmp_path, "--out", tmp_path / "o")
        assert result.exit_code == 1
        assert "ZeroDivisionError" in result.stderr
        assert f"{__file__}:" in result.stderr
        assert ("Testudo" in result.stderr) == debug


def test_the_hub_is_shut_unless_the_settings_ask_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries are told to stay offline; encoder.weights=hub lifts it, but not over the user's own word."""
    import ich_seq.extraction
    from ich_seq import commands

    seen: list[str | None] = []
    monkeypatch.setattr(ich_seq.extraction, "extract_features", lambda *_, **__: seen.append(os.environ.get(OFFLINE)))
    for anyway, weights in ((False, "random"), (False, "hub"), (True, "hub")):
        monkeypatch.setattr(commands, "OFFLINE_ANYWAY", anyway)
        if anyway:
            monkeypatch.setenv(OFFLINE, "1")
        else:
            monkeypatch.delenv(OFFLINE, raising=False)
        run("extract-features", tmp_path, "--out", tmp_path / "o", "--set", f"encoder.weights={weights}")
    assert seen == ["1", None, "1"]


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C ends as shells expect, with a word on how to go on."""
    import ich_seq.extraction

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ich_seq.extraction, "extract_features", interrupted)
    result = run("extract-features", tmp_path, "--out", tmp_path / "o")
    assert result.exit_code == INTERRUPTED
    assert "go on" in result.stderr


def test_sigterm_ends_with_143_and_a_word_on_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trainings write their state and raise SystemExit; no other end is dressed up so."""
    import ich_seq.extraction

    for code, words in ((143, "go on where they ended"), (7, "")):

        def ended(*_: object, code: int = code, **__: object) -> None:
            raise SystemExit(code)

        monkeypatch.setattr(ich_seq.extraction, "extract_features", ended)
        result = run("extract-features", tmp_path, "--out", tmp_path / "o")
        assert result.exit_code == code
        assert words in result.stderr
        assert ("SIGTERM" in result.stderr) == bool(words)


def test_models_that_learnt_nothing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who trains on too little is told so on stderr, and a program finds the number in the JSON."""
    import ich_seq.rnn_training as training

    def trained(*_: object, **__: object) -> training.TrainingSummary:
        return training.TrainingSummary(
            out=tmp_path, studies=9, unlabelled=(), duplicate_label_rows=0, networks=5, unchanged=2, figures={}
        )

    monkeypatch.setattr(training, "train_rnn", trained)
    result = run("train-rnn", tmp_path, "--labels", tmp_path / "l.csv", "--out", tmp_path, "--json")
    assert "5 sequence models 2 learnt nothing" in result.stderr
    assert json.loads(result.stdout)["unchanged"] == 2


def test_help_answers_at_once() -> None:
    """`--help` costs little more than starting Python and click: the best of five within 0.25 s of computing."""
    seconds = []
    for _ in range(5):
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # not the clock's, which other tests slow down
        subprocess.run([sys.executable, "-m", "ich_seq.cli", "--help"], check=True, capture_output=True)
        seconds.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before)
    assert min(seconds) < 0.25

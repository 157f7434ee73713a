"""The command line: options into settings, one call into a driver, its result onto stdout.

Heavy imports sit inside the command bodies, so that `ich-seq --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ich_seq import IchSeqError, __version__

if TYPE_CHECKING:
    from ich_seq.cnn_training import CnnSummary
    from ich_seq.config import Config
    from ich_seq.extraction import ExtractionSummary
    from ich_seq.prediction import PredictionSummary

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_DONE, EXIT_SOME_REJECTED, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 3, 130, 143
GO_ON = "Run the same command again: trainings and extract-features go on where they ended, others start afresh."
MAX_NAMED = 3
"""How many studies are named on the terminal; --json names all."""

EXIT_CODES = """\b
Exit codes: 0 all done; 1 a bug of ours; 2 a setting or input that cannot be meant;
3 done, but some files were rejected (see rejected.csv; under torchrun 0, as it
takes 3 for a failure); 4 nothing usable; 5 output or disk; 130, 143 interrupted."""


class Refusal(click.ClickException):
    """A refusal of the package as click shows it: its sentence, then its exit code."""

    def __init__(self, refusal: IchSeqError) -> None:
        super().__init__(str(refusal))
        self.exit_code = refusal.exit_code  # type: ignore[misc]  # click declares it for the class


class Commands(click.Group):
    """Turns refusals into a sentence on stderr and the documented exit code; any other error is our bug."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; raise click's exception for a refusal."""
        try:
            return super().invoke(ctx)
        except IchSeqError as refusal:
            raise Refusal(refusal) from refusal
        except KeyboardInterrupt:
            click.echo(f"Interrupted. {GO_ON}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except SystemExit as end:
            if end.code == EXIT_TERMINATED:
                click.echo(f"Ended by SIGTERM. {GO_ON}", err=True)
            raise


def _common(command: Command) -> Command:
    """Add the options that every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
        click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Processor."),
    ):
        command = option(command)
    return command


def _settings(command: Command) -> Command:
    """Add the options that set settings."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="A setting, e.g. train.epochs=30.",
        ),
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings, a TOML file."),
    ):
        command = option(command)
    return command


_out = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
_workers = click.option(
    "--workers", type=click.IntRange(min=0), help="Processes and threads that read. [default: one a core]"
)
_labels = click.option("--labels", required=True, type=click.Path(path_type=Path), help="Slice labels, a CSV file.")
_engine = click.option(
    "--engine", type=click.Choice(["torch", "openvino"]), help="What runs the encoder; openvino is for CPUs."
)
_input = click.argument("dicom", type=click.Path(path_type=Path))


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ich-seq")
def cli() -> None:
    """Intracranial haemorrhage on head CT, study by study. Research use only; not a medical device.

    A 2D network embeds each slice; a bidirectional GRU reads the slices of a study from feet to head
    and refines the probabilities of five subtypes and of any haemorrhage.
    """


@cli.command()
@_input
@_labels
@_out
@click.option("--fold", default="all", show_default=True, metavar="all|K", help="Train every fold or one, from 0.")
@click.option("--tensorboard", is_flag=True, help="Log to OUT/fold-K/tensorboard.")
@_settings
@_common
@_workers
def train_cnn(
    dicom: Path,
    labels: Path,
    out: Path,
    fold: str,
    tensorboard: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the slice encoder on labelled DICOM files, a network a patient fold.

    Each network learns from all folds but its own. Finished folds stay and a broken one goes on at its
    last state; under torchrun all processes train together. Afterwards extract-features --cnn OUT embeds
    every study by a network that did not learn from its patient.

    \b
    ich-seq train-cnn stage_2_train --labels stage_2_train.csv --out cnn
    """
    from ich_seq.cnn_training import train_cnn as run
    from ich_seq.figures import table
    from ich_seq.progress import shown

    wanted = None if fold == "all" else _whole_number("--fold", fold)
    config = _config(config_file, overrides)
    first = os.environ.get("RANK", "0") == "0"  # torchrun's other processes say nothing
    with shown(quiet=quiet or not first) as progress:
        summary = run(
            dicom,
            labels,
            out,
            config,
            fold=wanted,
            device=device,
            workers=workers,
            tensorboard=tensorboard,
            progress=progress,
        )
    if not first:
        return
    _name_unlabelled(summary.unlabelled)
    folds = ", ".join(map(str, summary.folds))
    text = f"{table(summary.figures)}\nfolds {folds} of {config.cnn.folds} -> {out}"
    _finish_reading(summary, text, {"folds": summary.folds, "figures": summary.figures}, as_json=as_json)


@cli.command()
@_input
@_out
@click.option("--cnn", type=click.Path(path_type=Path), help="What train-cnn wrote; stands in for the encoder.")
@_engine
@_settings
@_common
@_workers
def extract_features(
    dicom: Path,
    out: Path,
    cnn: Path | None,
    engine: str | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Embed the slices of every study in a folder of DICOM files.

    DICOM is searched with all its subfolders; files may have any name, and the studies may lie mixed in
    one folder. Writes a feature store; a broken run is taken up where it ended.

    \b
    ich-seq extract-features stage_2_train --cnn cnn --out features
    """
    from ich_seq.extraction import extract_features as run
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run(
            dicom,
            out,
            _config(config_file, overrides),
            cnn=cnn,
            engine=engine,
            device=device,
            workers=workers,
            progress=progress,
        )
    if summary.in_sample:
        click.echo(
            f"{summary.in_sample} studies could only be embedded by a network that learnt from their patients; "
            "train-rnn will refuse them. Train all folds to mend that.",
            err=True,
        )
    _finish_reading(summary, _counted(summary), {}, as_json=as_json)


@cli.command()
@click.argument("features", type=click.Path(path_type=Path))
@_labels
@_out
@_settings
@_common
def train_rnn(
    features: Path,
    labels: Path,
    out: Path,
    config_file: Path | None,
    overrides: tuple[str, ...],
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the sequence model on extracted features; print figures and write a bundle.

    The labels are RSNA's long form (ID,Label) or a row a slice with a column a label. The figures are
    out of fold by patient and stand beside what knows less: the prevalence, the position, each slice alone.

    \b
    ich-seq train-rnn features --labels stage_2_train.csv --out bundle
    """
    from ich_seq.figures import table
    from ich_seq.progress import shown
    from ich_seq.rnn_training import train_rnn as run

    with shown(quiet=quiet) as progress:
        summary = run(features, labels, out, _config(config_file, overrides), device=device, progress=progress)
    _name_unlabelled(summary.unlabelled)
    if summary.duplicate_label_rows:
        click.echo(f"Label rows that only repeat another: {summary.duplicate_label_rows}.", err=True)
    if summary.unchanged:
        click.echo(
            f"Of the bundle's {summary.networks} sequence models {summary.unchanged} learnt nothing that held on the "
            "fold they stopped on, and add nothing to the slice logits. More studies or a lower train.learning_rate "
            "may help.",
            err=True,
        )
    result = {
        "out": str(out),
        "studies": summary.studies,
        "unlabelled": summary.unlabelled,
        "duplicate_label_rows": summary.duplicate_label_rows,
        "networks": summary.networks,
        "unchanged": summary.unchanged,
        "figures": summary.figures,
    }
    _finish(result, f"{table(summary.figures)}\n{summary.studies} studies -> {out}", as_json=as_json)


@cli.command()
@_input
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="What train-rnn wrote.")
@_out
@_engine
@_common
@_workers
def predict(
    dicom: Path,
    bundle: Path,
    out: Path,
    engine: str | None,
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Give every slice and study below a folder its six probabilities.

    Writes studies.csv (likeliest first), slices.csv (feet to head), submission.csv (Kaggle's form),
    rejected.csv (files not used, and why) and run.json.

    \b
    ich-seq predict /data/incoming --bundle bundle --out results
    """
    from ich_seq.prediction import predict as run
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run(dicom, bundle, out, engine=engine, device=device, workers=workers, progress=progress)
    _finish_reading(summary, _counted(summary), {}, as_json=as_json)


@cli.command()
@click.option(
    "--predictions",
    required=True,
    type=click.Path(path_type=Path),
    help="What predict wrote: slices.csv, or its folder.",
)
@_labels
@_out
@click.option("--bundle", type=click.Path(path_type=Path), help="What train-rnn wrote: was it trained on these labels?")
@click.option(
    "--prevalence",
    "shares",
    multiple=True,
    metavar="LABEL=SHARE",
    help="Of studies, for predictive values, e.g. any=0.1. [default: as in the data]",
)
@click.option(
    "--resamples", default=2000, show_default=True, type=click.IntRange(min=100), help="Bootstrap samples of patients."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def evaluate(
    predictions: Path,
    labels: Path,
    out: Path,
    bundle: Path | None,
    shares: tuple[str, ...],
    resamples: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Hold predictions against labels: figures of slices and studies, each with its 95 % interval.

    Writes evaluation.json and figures.csv: the challenge's loss, AUROC, average precision, Brier score, calibration
    error, and sensitivity, specificity and predictive values at 95 % of the other, label by label; the CNN, the
    sequence models and their blend beside what the prevalence and the position alone say, and their paired
    differences; reliability by bins; subgroups of studies.

    \b
    ich-seq evaluate --predictions results --labels stage_2_train.csv --out evaluation
    """
    from ich_seq.evaluation import evaluate as run
    from ich_seq.evaluation import summarised
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run(
            predictions, labels, out, bundle=bundle, prevalence=_shares(shares), resamples=resamples, progress=progress
        )
    made_by = summary.evaluation.get("bundle", {})
    if made_by.get("trained_on_these_labels") and made_by["made_the_predictions"] is not False:
        click.echo(
            "The bundle was trained with this very label file: if it learnt from these studies, the figures are too "
            "good; those in its bundle.json are out of fold.",
            err=True,
        )
    _finish(summary.evaluation | {"out": str(out)}, f"{summarised(summary.evaluation)} -> {out}", as_json=as_json)


@cli.command()
@click.option("--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--studies", default=72, show_default=True, type=click.IntRange(min=8), help="Synthetic studies to train on."
)
@click.option("--seed", default=0, show_default=True, help="Another seed draws other studies.")
@_common
@_workers
def demo(out: Path, studies: int, seed: int, device: str, workers: int | None, quiet: bool, as_json: bool) -> None:
    """Run everything once on synthetic studies, in minutes and with no data of your own.

    Draws head-CT phantoms as DICOM files, trains both stages, and predicts studies not trained on.
    """
    from ich_seq.demo import run_demo
    from ich_seq.figures import table
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run_demo(out, studies=studies, seed=seed, device=device, workers=workers, progress=progress)
    text = f"{table(summary.figures)}\n\n{summary.explanation}"
    result = {"out": str(out), "figures": summary.figures, "explanation": summary.explanation}
    _finish(result, text, as_json=as_json)


def _config(path: Path | None, overrides: tuple[str, ...]) -> Config:
    from ich_seq.config import load_config

    return load_config(path, overrides)


def _shares(given: tuple[str, ...]) -> dict[str, float]:
    shares = {}
    for text in given:
        label, _, share = text.partition("=")
        try:
            shares[label] = float(share)
        except ValueError:
            raise click.BadParameter(f"--prevalence is a label and a share, e.g. any=0.1; given: {text}") from None
    return shares


def _whole_number(option: str, value: str) -> int:
    if not value.isdecimal():
        raise click.BadParameter(f"{option} is a fold's number, from 0, or all; given: {value}")
    return int(value)


def _name_unlabelled(unlabelled: tuple[str, ...]) -> None:
    if unlabelled:
        named = ", ".join(unlabelled[:MAX_NAMED]) + (" ..." if len(unlabelled) > MAX_NAMED else "")
        click.echo(f"Left out for want of labels: {len(unlabelled)} studies ({named}).", err=True)


def _counted(summary: ExtractionSummary | PredictionSummary) -> str:
    return f"{summary.studies} studies, {summary.counts.used} slices -> {summary.out}"


def _finish_reading(
    summary: CnnSummary | ExtractionSummary | PredictionSummary, text: str, more: dict[str, Any], *, as_json: bool
) -> NoReturn:
    """Print the result; end with 3 if files were rejected, under torchrun with 0, and the reasons on stderr."""
    from dataclasses import asdict

    counts = summary.counts
    if counts.reasons:
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.reasons.items())
        click.echo(
            f"Of {counts.files} files {counts.excluded} were excluded and {counts.rejected} rejected ({reasons}); "
            f"{summary.out / 'rejected.csv'} lists each.",
            err=True,
        )
    _finish({"out": str(summary.out), "studies": summary.studies, **asdict(counts), **more}, text, as_json=as_json)
    # torchrun takes any other code for a failure: it ends the other processes and says FAILED
    sys.exit(EXIT_SOME_REJECTED if counts.rejected and "TORCHELASTIC_RUN_ID" not in os.environ else EXIT_DONE)


def _finish(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print the result, the one thing that goes to stdout."""
    click.echo(json.dumps(result, indent=2) if as_json else text)


def main() -> None:
    """Run the command line; SIGTERM ends it like an exception, so that what is open is closed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cli()


if __name__ == "__main__":
    main()

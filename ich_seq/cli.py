"""The command line: options into settings, one call into a driver, its result onto stdout.

Heavy imports sit inside the command bodies, so that `ich-seq --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ich_seq import OutputError, __version__
from ich_seq.commands import (
    EXIT_CODES,
    Commands,
    Place,
    bundle_option,
    common,
    counted,
    dicom_argument,
    dicom_source,
    engine_option,
    finish,
    finish_predicting,
    finish_reading,
    labels_option,
    name_shipped,
    name_unlabelled,
    out_option,
    phi_option,
    read_config,
    read_fold,
    read_shares,
    read_source,
    report_option,
    send_option,
    settings,
    speaks,
    telling,
    workers_option,
)
from ich_seq.demo_cli import demo
from ich_seq.send_cli import send
from ich_seq.signals import ended_by_signals
from ich_seq.tables import printable
from ich_seq.terminal import harmless_streams
from ich_seq.watch_cli import watch
from ich_seq.weight_library import is_shipped
from ich_seq.weights_cli import export, weights


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ich-seq")
def cli() -> None:
    """Intracranial haemorrhage on head CT, study by study. Research use only; not a medical device.

    A 2D network embeds each slice; a bidirectional GRU reads the slices of a study from feet to head
    and refines the probabilities of five subtypes and of any haemorrhage.
    """


@cli.command()
@click.argument("source", metavar="DICOM_OR_TABLE...", type=Place(), nargs=-1, required=True)
@click.option("--labels", type=Place(), help="Slice labels, a CSV file. [default: the table's own]")
@out_option
@phi_option
@workers_option
@telling
def explore(
    source: tuple[Path, ...], labels: Path | None, out: Path, phi: bool, workers: int | None, as_json: bool, quiet: bool
) -> None:
    """See what data holds before anything is trained: one page with charts and pictures, and all its numbers.

    DICOM_OR_TABLE is folders, files, zip archives or DICOMDIRs of DICOM files, or a CSV: a row a slice with DICOM
    keywords as columns, a label file, or a row a study. Writes exploration.html, exploration.json, figures.csv (its
    numbers), studies.csv (a row a study) and rejected.csv (what was not used, and why).

    \b
    ich-seq explore stage_2_train --labels stage_2_train.csv --out exploration
    """
    from ich_seq.exploration import explore as run
    from ich_seq.exploration import summarised
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run(source, out, labels, workers=workers, phi=phi, progress=progress)
    text = f"{summarised(summary.exploration)} -> {printable(str(out))}"
    finish_reading(summary, text, {"exploration": summary.exploration}, as_json=as_json)


@cli.command()
@dicom_argument
@labels_option
@out_option
@click.option(
    "--fold",
    default="all",
    show_default=True,
    metavar="all|K|final",
    help="Train every fold, one, from 0, or the final network.",
)
@click.option("--also", type=Place(), help="Labels of slices that are learnt from too, but judged by none, a CSV file.")
@click.option("--begin", type=Place(), metavar="RUN", help="Begin each fold at its network of another run.")
@click.option("--tensorboard", is_flag=True, help="Log to OUT/fold-K/tensorboard.")
@phi_option
@settings
@common
@workers_option
def train_cnn(
    dicom: tuple[Path, ...],
    labels: Path,
    out: Path,
    fold: str,
    also: Path | None,
    begin: Path | None,
    tensorboard: bool,
    phi: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the slice encoder on labelled DICOM files, a network a patient fold.

    DICOM is folders, files, zip archives or DICOMDIRs.
    Each network learns from all folds but its own. Finished folds stay and a broken one goes on at its
    last state; under torchrun all processes train together. Afterwards extract-features --cnn OUT embeds
    every study by a network that did not learn from its patient. --fold final adds the network for new patients, which
    learns from all: a bundle then holds it alone, and predicts in a fraction of the time. Studies with labels in --also
    alone add to what may be learnt: bleeds drawn by hand or program, heads of another hospital.

    \b
    ich-seq train-cnn stage_2_train --labels stage_2_train.csv --out cnn
    """
    wanted = read_fold("--fold", fold)
    config = read_config(config_file, overrides)
    from ich_seq.cnn_training import train_cnn as run
    from ich_seq.figures import table
    from ich_seq.progress import shown

    with shown(quiet=quiet or not speaks()) as progress:
        summary = run(
            dicom,
            labels,
            out,
            config,
            also=also,
            begin=begin,
            fold=wanted,
            device=device,
            workers=workers,
            tensorboard=tensorboard,
            phi=phi,
            progress=progress,
        )
    if not speaks():
        return
    name_unlabelled(summary.unlabelled)
    folds = f"folds {', '.join(map(str, summary.folds))} of {config.cnn.folds}" if summary.folds else ""
    trained = " and ".join(filter(None, [folds, "the final network" if summary.final else ""]))
    trained += f", of {summary.also_studies} more studies too" if summary.also_studies else ""
    judged = f"{table(summary.figures)}\n" if summary.figures else ""
    more = {"folds": summary.folds, "final": summary.final, "figures": summary.figures}
    finish_reading(summary, f"{judged}{trained} -> {printable(str(out))}", more, as_json=as_json)


@cli.command()
@dicom_source
@out_option
@click.option(
    "--cnn",
    type=Place(),
    multiple=True,
    help="What train-cnn wrote; stands in for the encoder. "
    "Given more than once, each fold's networks embed side by side.",
)
@engine_option
@phi_option
@settings
@common
@workers_option
def extract_features(
    dicom: tuple[Path, ...],
    dicomweb: str | None,
    studies: tuple[str, ...],
    out: Path,
    cnn: tuple[Path, ...],
    engine: str | None,
    phi: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Embed the slices of every study in DICOM files.

    DICOM is folders, searched with all their subfolders, files, zip archives or DICOMDIRs; files may have any name, and
    the studies may lie mixed. With --dicomweb studies are fetched from an archive instead. Writes a feature store; a
    broken run is taken up where it ended. Under torchrun the processes share out the studies.

    \b
    ich-seq extract-features stage_2_train --cnn cnn --out features
    """
    source = read_source(dicom, dicomweb, studies)
    config = read_config(config_file, overrides)
    from ich_seq.extraction import extract_features as run
    from ich_seq.progress import shown

    with shown(quiet=quiet or not speaks()) as progress:
        summary = run(
            source,
            out,
            config,
            cnn=cnn or None,
            engine=engine,
            device=device,
            workers=workers,
            phi=phi,
            progress=progress,
        )
    if not speaks():
        return
    if summary.in_sample:
        click.echo(
            f"{summary.in_sample} studies could only be embedded by a network that learnt from their patients; "
            "train-rnn will refuse them. Train all folds to mend that; those of --also are for learning alone.",
            err=True,
        )
    finish_reading(summary, counted(summary), {}, as_json=as_json)


@cli.command()
@click.argument("features", type=Place())
@labels_option
@out_option
@click.option("--predictions", type=Place(), help="Folder for the predictions out of fold, for evaluate.")
@settings
@common
def train_rnn(
    features: Path,
    labels: Path,
    out: Path,
    predictions: Path | None,
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
    config = read_config(config_file, overrides)
    from ich_seq.figures import table
    from ich_seq.progress import shown
    from ich_seq.rnn_training import train_rnn as run

    with shown(quiet=quiet) as progress:
        summary = run(features, labels, out, config, predictions=predictions, device=device, progress=progress)
    name_unlabelled(summary.unlabelled)
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
    finish(result, f"{table(summary.figures)}\n{summary.studies} studies -> {printable(str(out))}", as_json=as_json)


@cli.command()
@dicom_source
@bundle_option
@out_option
@engine_option
@report_option
@click.option("--sr", is_flag=True, help="DICOM SR and key objects in OUT/sr; they name the patient (PHI).")
@send_option
@phi_option
@common
@workers_option
def predict(
    dicom: tuple[Path, ...],
    dicomweb: str | None,
    studies: tuple[str, ...],
    bundle: Path,
    out: Path,
    engine: str | None,
    report: bool,
    sr: bool,
    send: str | None,
    phi: bool,
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Give every slice and study its six probabilities.

    DICOM is folders, files, zip archives, read without unpacking, or DICOMDIRs, of which the files they name are read.
    With --dicomweb studies are fetched from an archive instead.
    Writes report.html (a worklist, and a page a study with its key slices), studies.csv (likeliest first), slices.csv
    (feet to head), submission.csv (Kaggle's form), rejected.csv (files not used, and why) and run.json. Under torchrun
    the processes share out the studies.

    \b
    ich-seq predict /data/incoming --bundle bundle --out results
    """
    source, sr = read_source(dicom, dicomweb, studies), sr or send is not None
    if speaks() and is_shipped(bundle):
        name_shipped()
    from ich_seq.prediction import predict as run
    from ich_seq.progress import shown

    with shown(quiet=quiet or not speaks()) as progress:
        summary = run(
            source,
            bundle,
            out,
            engine=engine,
            device=device,
            workers=workers,
            report=report,
            sr=sr,
            phi=phi,
            progress=progress,
        )
    if speaks():
        finish_predicting(summary, sr=sr, send=send, as_json=as_json)


@cli.command()
@click.option(
    "--predictions",
    required=True,
    type=Place(),
    help="What predict wrote: slices.csv, or its folder.",
)
@click.option("--labels", required=True, type=Place(), help="Labels of slices or of studies, a CSV file.")
@out_option
@click.option("--bundle", type=Place(), help="What train-rnn wrote: was it trained on these labels?")
@click.option("--dicom", multiple=True, type=Place(), help="What was predicted, for pictures of failures.")
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
@telling
def evaluate(
    predictions: Path,
    labels: Path,
    out: Path,
    bundle: Path | None,
    dicom: tuple[Path, ...],
    shares: tuple[str, ...],
    resamples: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Hold predictions against labels: figures of slices and studies, each with its 95 % interval.

    Writes evaluation.html, evaluation.json and figures.csv: the challenge's loss, AUROC, average
    precision, Brier score, calibration error, and sensitivity, specificity and predictive values at 95 % of the other,
    label by label; the CNN, the sequence models and their blend beside what the prevalence and the position alone say,
    and their paired differences; ROC and reliability; subgroups; the worst failures; a reporting checklist. Labels may
    be of slices, or of studies, as CQ500's reads.csv. With --bundle also its model card, card.html.

    \b
    ich-seq evaluate --predictions results --labels stage_2_train.csv --out evaluation
    """
    from ich_seq.evaluation import evaluate as run
    from ich_seq.evaluation import summarised
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run(
            predictions,
            labels,
            out,
            bundle=bundle,
            dicom=dicom or None,
            prevalence=read_shares(shares),
            resamples=resamples,
            progress=progress,
        )
    if dicom and summary.evaluation["failures"] and not summary.pictured:
        held = printable(", ".join(map(str, dicom)))
        click.echo(f"No picture: {held} holds none of the slices that the page names.", err=True)
    made_by = summary.evaluation.get("bundle", {})
    if made_by.get("trained_on_these_labels") and made_by["made_the_predictions"] is not False:
        click.echo(
            "The bundle was trained with this very label file: if it learnt from these studies, the figures are too "
            "good; those in its bundle.json are out of fold.",
            err=True,
        )
    finish(
        summary.evaluation | {"out": str(out)},
        f"{summarised(summary.evaluation)} -> {printable(str(out))}",
        as_json=as_json,
    )


cli.add_command(weights)
cli.add_command(export)


cli.add_command(demo)
cli.add_command(watch)
cli.add_command(send)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # no process of ours takes a module from the current folder
    with harmless_streams(), ended_by_signals():
        try:
            cli()
        except OSError as error:  # of a help or version that stdout does not take; all else is told by the commands
            print(f"Error: stdout: {error.strerror}.", file=sys.stderr)
            sys.exit(OutputError.exit_code)


if __name__ == "__main__":
    main()

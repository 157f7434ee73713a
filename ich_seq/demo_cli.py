"""The command that shows the package at work."""

from __future__ import annotations

from pathlib import Path

import click

from ich_seq.commands import Place, common, finish, finish_reading, name_shipped, was_given, workers_option


@click.command()
@click.option("--out", default="demo", show_default=True, type=Place(), help="Folder to write.")
@click.option(
    "--studies", default=72, show_default=True, type=click.IntRange(min=8), help="Synthetic studies to train on."
)
@click.option("--seed", default=0, show_default=True, help="Another seed draws other studies.")
@click.option("--real", multiple=True, metavar="DICOM", type=Place(), help="Predict these files in place of all that.")
@common
@workers_option
def demo(
    out: Path,
    studies: int,
    seed: int,
    real: tuple[Path, ...],
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run everything once on synthetic studies, in minutes and with no data of your own.

    Draws head-CT phantoms as DICOM files, trains both stages, and predicts studies not trained on. With --real a study
    of yours is predicted instead, in seconds, by the bundle that comes with ich-seq.
    """
    if real and (was_given("studies") or was_given("seed")):
        raise click.UsageError("--studies and --seed are of the synthetic studies; with --real none are drawn.")
    from ich_seq.demo import read_out, run_demo, run_real
    from ich_seq.figures import table
    from ich_seq.progress import shown

    if real:
        name_shipped()
        with shown(quiet=quiet) as progress:
            found = run_real(real, out, device=device, workers=workers, progress=progress)
        finish_reading(found, read_out(found), {}, as_json=as_json)

    with shown(quiet=quiet) as progress:
        summary = run_demo(out, studies=studies, seed=seed, device=device, workers=workers, progress=progress)
    text = f"{table(summary.figures)}\n\n{summary.explanation}"
    result = {"out": str(out), "figures": summary.figures, "explanation": summary.explanation}
    finish(result, text, as_json=as_json)

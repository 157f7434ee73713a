"""What the commands share: their options, how a refusal is shown, how a result is printed.

Heavy imports sit inside the functions, so that `ich-seq --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from ich_seq import ArchiveError, IchSeqError, UsageError, signals
from ich_seq.progress import Progress, silent
from ich_seq.signals import ENDED, GO_ON, INTERRUPTED
from ich_seq.tables import printable
from ich_seq.terminal import print_result
from ich_seq.weight_library import SHIPPED

if TYPE_CHECKING:
    from ich_seq.cnn_training import CnnSummary
    from ich_seq.config import Config
    from ich_seq.exploration import ExplorationSummary
    from ich_seq.extraction import ExtractionSummary
    from ich_seq.prediction import PredictionSummary
    from ich_seq.sources import Source

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_DONE, EXIT_BUG, EXIT_SOME_REJECTED = 0, 1, 3
OFFLINE = "HF_HUB_OFFLINE"
"""Hugging Face's own switch: no library that we load asks its hub, unless encoder.weights says so."""

OFFLINE_ANYWAY = OFFLINE in os.environ
DEBUG = "its text may hold patient data and is not shown: set ICH_SEQ_DEBUG=1 to see it. Please report these lines."
MAX_TOLD, MAX_TOLD_LINES = 1000, 20
"""Letters of a line and lines of a refusal that are shown."""

MAX_NAMED = 3
"""How many studies are named on the terminal; --json names all."""

EXIT_CODES = """\b
Exit codes: 0 all done; 1 a bug of ours; 2 a wrong setting or input; 3 done, but some
files were rejected (see rejected.csv; under torchrun 0, as it takes 3 for a failure) or
studies have no SR (see sr/not_written.csv); 4 nothing usable; 5 output or stdout cannot
be written; 6 an archive cannot be reached, refuses, has none of the studies, or did not
take all results (which are in OUT); 129, 130, 143 interrupted."""


def shortened(line: str) -> str:
    """Return a line without its middle, if it is longer than anybody reads."""
    half = MAX_TOLD // 2
    return line if len(line) <= MAX_TOLD else f"{line[:half]} ... {line[-half:]}"


class Refusal(click.ClickException):
    """A refusal of the package as click shows it: its sentence, then its exit code."""

    def __init__(self, refusal: IchSeqError) -> None:
        # it may quote a file of anybody's, who must not begin a line of ours
        first, *others = (shortened(printable(line)) for line in str(refusal).split("\n")[:MAX_TOLD_LINES])
        super().__init__("\n".join([first, *(f"  {line}" for line in others)]))
        self.exit_code = refusal.exit_code  # type: ignore[misc]  # click declares it for the class


class Commands(click.Group):
    """Turns refusals into a sentence on stderr and the documented exit code; any other error is our bug."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; raise click's exception for a refusal."""
        os.environ.setdefault(OFFLINE, "1")
        try:
            return super().invoke(ctx)
        except IchSeqError as refusal:
            if refusal.told:
                ctx.exit(refusal.exit_code)
            raise Refusal(refusal) from refusal
        except PermissionError as error:  # of a look at something below a folder that is closed to us
            raise Refusal(UsageError(f"{error.filename} cannot be read: {error.strerror}.")) from error
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise  # click's own ways to end
        except (KeyboardInterrupt, SystemExit) as end:
            code = INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
            if code in ENDED:
                click.echo(f"{ENDED[code]}. {GO_ON}", err=True)
            ctx.exit(code if isinstance(code, int) else EXIT_DONE)
        except Exception as error:
            if (code := signals.exit_code()) is not None:  # which some library turned into an error of its own
                ctx.exit(code)
            click.echo(our_bug(error), err=True)
            ctx.exit(EXIT_BUG)


def our_bug(error: Exception) -> str:
    """Say where an error came about, without its text: that can quote names, paths and values of patients."""
    frames = [f"  {f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    told = f": {error}" if os.environ.get("ICH_SEQ_DEBUG") else f"; {DEBUG}"
    return "\n".join([f"A bug of ich-seq: {type(error).__name__}{told}", *frames])


class Place(click.Path):
    """A path that the system can look at, whether anything is there or not."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; one that is too long, or holds a NUL, is a mistake of whoever gave it."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass
        except (OSError, ValueError) as error:
            self.fail(f"not a usable path: {getattr(error, 'strerror', None) or error}", param, ctx)
        return path


def reporting(command: Command) -> Command:
    """Add the option that every command has: how its result is printed."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def telling(command: Command) -> Command:
    """Add the options of every command that takes its time: what is printed."""
    return click.option("--quiet", is_flag=True, help="Show no progress.")(reporting(command))


def common(command: Command) -> Command:
    """Add the options of every command that computes with networks."""
    device = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Processor.")
    return device(telling(command))


def settings(command: Command) -> Command:
    """Add the options that set settings."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="A setting, e.g. train.epochs=30.",
        ),
        click.option("--config", "config_file", type=Place(), help="Settings, a TOML file."),
    ):
        command = option(command)
    return command


out_option = click.option("--out", required=True, type=Place(), help="Folder to write.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=0), help="Processes and threads that read. [default: one a core]"
)
labels_option = click.option("--labels", required=True, type=Place(), help="Slice labels, a CSV file.")
bundle_option = click.option(
    "--bundle",
    default=SHIPPED,
    show_default=True,
    type=Place(),
    help="What train-rnn wrote, a name of the library, or what comes with ich-seq.",
)
report_option = click.option(
    "--report/--no-report", default=True, show_default=True, help="Pages to look at: report.html."
)
engine_option = click.option(
    "--engine", type=click.Choice(["torch", "openvino"]), help="What runs the encoder; openvino is for CPUs."
)
phi_option = click.option(
    "--phi",
    is_flag=True,
    help="Write Patient IDs and names of files (protected health information), not hashes and numbers.",
)
dicom_argument = click.argument("dicom", type=Place(), nargs=-1, required=True)


def dicom_source(command: Command) -> Command:
    """Add what names the studies of a run: files and folders, or an archive and UIDs."""
    for option in (
        click.option(
            "--study", "studies", multiple=True, metavar="UID", help="A study to fetch; give it once for each."
        ),
        click.option("--dicomweb", metavar="URL", help="Fetch studies from this archive, in place of DICOM."),
        click.argument("dicom", type=Place(), nargs=-1),
    ):
        command = option(command)
    return command


def archive_url(ctx: click.Context, param: click.Parameter, url: str | None) -> str | None:
    """Return the URL of an archive that is needed in the end only, checked before hours of work."""
    if url is not None:
        from ich_seq.archive import checked_url

        checked_url(url)
    return url


send_option = click.option(
    "--send", metavar="URL", callback=archive_url, help="Store these DICOM objects in this archive; implies --sr."
)


def is_url(path: Path) -> bool:
    """Tell whether what was given as a path is a URL, of which a path has lost a slash."""
    return str(path).lower().startswith(("http:/", "https:/")) and not path.exists()


def read_source(dicom: tuple[Path, ...], dicomweb: str | None, studies: tuple[str, ...]) -> Source:
    """Return the one source that was given; click's UsageError says what is missing or too much."""
    if dicomweb is None and any(map(is_url, dicom)):
        raise click.UsageError(
            "DICOM is files and folders; a URL is given by --dicomweb URL, with a --study UID or more."
        )
    if dicomweb is None and dicom and not studies:
        return dicom
    if dicomweb is None or dicom or not studies:
        raise click.UsageError("Give either DICOM, or --dicomweb URL and a --study UID or more.")
    from ich_seq.sources import ArchivedStudies

    return ArchivedStudies(dicomweb, studies)


def was_given(option: str) -> bool:
    """Tell whether an option of the command at hand was given, by the name of its parameter."""
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def speaks() -> bool:
    """Tell whether this process shows progress and prints the result: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


def read_config(path: Path | None, overrides: tuple[str, ...]) -> Config:
    """Read settings from a file and from --set. Raises UsageError for what is none.

    To be called before what loads networks is imported: settings that ask for weights of the hub open the way to it.
    """
    from ich_seq.config import load_config

    config = load_config(path, overrides)
    if config.encoder.weights == "hub":
        open_hub()
    return config


def open_hub() -> None:
    """Open the way to the hub, unless the environment shut it; to be called before what asks it is imported."""
    if not OFFLINE_ANYWAY:
        os.environ.pop(OFFLINE, None)


def read_shares(given: tuple[str, ...]) -> dict[str, float]:
    """Return --prevalence as shares by label; refused is what is no number, not yet what is no share."""
    shares = {}
    for text in given:
        label, _, share = text.partition("=")
        try:
            shares[label] = float(share)
        except ValueError:
            raise click.BadParameter(
                f"--prevalence is a label and a share, e.g. any=0.1; given: {printable(text)}"
            ) from None
    return shares


def read_fold(option: str, value: str) -> int | Literal["final"] | None:
    """Return a fold's number, "final", or None for all."""
    if value == "all":
        return None
    if value == "final":
        return "final"
    if not value.isdecimal():
        raise click.BadParameter(f"{option} is a fold's number, from 0, all or final; given: {printable(value)}")
    return int(value)


def name_shipped() -> None:
    """Say on stderr that it is the bundle of the package that is to predict, and what that means."""
    click.echo(
        f"Predicting with {SHIPPED}, the bundle that comes with ich-seq: trained on 62 patients of one hospital, to "
        "show how it works. Research use only; not a medical device. It has hardly seen intraventricular, subarachnoid "
        "and subdural bleeds: decide nothing by those columns. Your own: --bundle.",
        err=True,
    )


def name_unlabelled(unlabelled: tuple[str, ...]) -> None:
    """Say on stderr which studies were left out for want of labels, if any were."""
    if unlabelled:
        named = ", ".join(unlabelled[:MAX_NAMED]) + (" ..." if len(unlabelled) > MAX_NAMED else "")
        click.echo(f"Left out for want of labels: {len(unlabelled)} studies ({printable(named)}).", err=True)


def counted(summary: ExtractionSummary | PredictionSummary) -> str:
    """Return in a line what was used, and where the result lies."""
    return f"{summary.studies} studies, {summary.counts.used} files -> {printable(str(summary.out))}"


def finish_reading(
    summary: CnnSummary | ExplorationSummary | ExtractionSummary | PredictionSummary,
    text: str,
    more: dict[str, Any],
    *,
    as_json: bool,
    lacking: bool = False,
    trouble: IchSeqError | None = None,
) -> NoReturn:
    """Print the result; end with 3 if files were rejected, under torchrun with 0, and the reasons on stderr.

    Also with 3 if something is `lacking` that was asked for. `trouble` is raised when all is printed: what went wrong
    after the result was whole.
    """
    from dataclasses import asdict

    counts, listed = summary.counts, printable(str(summary.out / "rejected.csv"))
    if counts.reasons:
        click.echo(
            f"Of {counts.files} files {counts.excluded} were excluded and {counts.rejected} rejected "
            f"({counts.named_reasons}); {listed} lists each.",
            err=True,
        )
    if counts.lost_frames:
        click.echo(f"Of files that were used {counts.lost_frames} frames were rejected; {listed} lists each.", err=True)
    finish({"out": str(summary.out), "studies": summary.studies, **asdict(counts), **more}, text, as_json=as_json)
    if trouble is not None:
        raise trouble
    # torchrun takes any other code for a failure: it ends the other processes and says FAILED
    lacking = lacking or counts.rejected + counts.lost_frames > 0
    sys.exit(EXIT_SOME_REJECTED if lacking and "TORCHELASTIC_RUN_ID" not in os.environ else EXIT_DONE)


def finish_predicting(summary: PredictionSummary, *, sr: bool, send: str | None, as_json: bool) -> NoReturn:
    """Print the result of predict as `finish_reading` does; studies without the DICOM results asked for count too.

    The results are stored in the archive `send` before.
    """
    if summary.not_written:
        click.echo(
            f"{len(summary.not_written)} of {summary.studies} studies have no DICOM results; "
            f"{printable(str(summary.out / 'sr' / 'not_written.csv'))} says why.",
            err=True,
        )
    more: dict[str, Any] = {}
    if sr:
        more = {"dicom_results": len(summary.dicom_results), "not_written": len(summary.not_written)}
    text, trouble = counted(summary), None
    if send is not None:
        line, sent, trouble = store_results(send, summary.out, summary.dicom_results)
        text, more = f"{text}\n{line}", more | {"sent": sent}
    lacking = bool(summary.not_written)
    finish_reading(summary, text, more, as_json=as_json, lacking=lacking, trouble=trouble)


def store_results(
    url: str, out: Path, files: Sequence[Path], progress: Progress = silent
) -> tuple[str, dict[str, Any], ArchiveError | None]:
    """Store DICOM results, files below `out`, in an archive; return a line and JSON that tell of it, and what to raise.

    The last is None if the archive took all.
    """
    from ich_seq.dicomweb import send

    def each() -> Iterator[Path]:
        for number, path in enumerate(files, start=1):
            yield path
            progress("sending results", number, len(files))

    sent = send(url, each())
    refused = {path.relative_to(out).as_posix(): why for path, why in sent.refused}
    line = f"{len(sent.stored)} of {len(files)} results stored in {urlsplit(url).netloc}"
    told = {"stored": len(sent.stored), "refused": refused}
    if not refused:
        return line, told, None
    lines = [f"{len(refused)} of {len(files)} results were not stored; ich-seq send {out} URL sends all of them again:"]
    return line, told, ArchiveError("\n".join([*lines, *(f"{name}: {why}" for name, why in refused.items())]))


def finish(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print the result as JSON or as text. Raises OutputError if stdout takes none."""
    print_result(json.dumps(result, indent=2) if as_json else "\n".join(map(printable, text.split("\n"))))

"""Spoilt headers and spoilt codestreams: none kills or hangs the process that reads, none is misread in silence.

What becomes of one is told by `header_mutants` and `codec_mutants`; here they are tried by the thousand.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attacks import Figures, Outcome, scaled
from attacks.codec_mutants import Frame, read_both, sound_frames, try_frame
from attacks.encoders import ENCODERS, NAMES
from attacks.header_mutants import silent_use, sound_drafts, try_header
from attacks.plain_dicom import Draft, written
from attacks.verdicts import ReadHeader, ReadPixels, Verdict, read_header
from attacks.watch_trials import Fate, watched
from ich_seq.hounsfield import read_hounsfield
from ich_seq.reasons import Unused

HEADERS, FRAMES = 100_000, 40_000
LIMIT_S = 5.0
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
Answers = Sequence[Verdict | Fate]


def run(
    work: Path,
    *,
    scale: float,
    seed: int = 0,
    read: ReadHeader = read_header,
    read_pixels: ReadPixels = read_hounsfield,
    shared: Path = SHARED,
) -> Outcome:
    """Read spoilt headers and codestreams; `shared` is where real files lie, for the codec that is not made here."""
    frames = sound_frames(seed, shared)
    sound = (*sound_drafts(), *(frame.draft for frame in frames))
    n_headers, n_frames = scaled(HEADERS, scale), scaled(FRAMES, scale)
    with _fast_folder(work) as folder:
        kinds = (
            (len(sound), partial(try_sound, sound, folder, read, read_pixels)),
            (n_headers, partial(try_header, seed, folder, read)),
            (n_frames, partial(try_frame, seed, frames, folder, read, read_pixels)),
        )
        answers = [answer for _, answer in watched(partial(_try, kinds), len(sound) + n_headers + n_frames, LIMIT_S)]
    headers, pixels = answers[len(sound) : -n_frames], answers[-n_frames:]
    failures = [
        *(
            f"the sound file in syntax {sound[number].syntax}: {wrong}"
            for number, wrong in _wrongs(answers[: len(sound)])
        ),
        *(f"header mutant {number} of seed {seed}: {wrong}" for number, wrong in _wrongs(headers)),
        *(f"{_codec(number, frames)} mutant {number} of seed {seed}: {wrong}" for number, wrong in _wrongs(pixels)),
    ]
    figures = _header_figures(headers) | _codec_figures(pixels, frames)
    return Outcome(n_headers + n_frames, tuple(failures), figures)


def _try(kinds: Sequence[tuple[int, Callable[[int], Verdict]]], number: int) -> Verdict:
    """Try one of several kinds of things, numbered through; each kind says how many there are of it."""
    for count, trial in kinds:
        if number < count:
            return trial(number)
        number -= count
    raise IndexError(number)


def try_sound(drafts: Sequence[Draft], folder: Path, read: ReadHeader, read_pixels: ReadPixels, number: int) -> Verdict:
    """Read a sound file: an attack by mutants of files that are refused proves nothing."""
    path = folder / f"{os.getpid()}.dcm"
    path.write_bytes(written(drafts[number]))
    header = read(path, path.name)
    if isinstance(header, Unused):
        return Verdict("refused", 0.0, f"it is refused: {header.detail}")
    return Verdict("read", 0.0, silent_use(header, path.read_bytes()) or read_both(path, read, read_pixels)[1])


@contextmanager
def _fast_folder(work: Path) -> Iterator[Path]:
    """Give a folder in memory if there is one: each mutant is written as a file."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else work) as name:
        yield Path(name)


def _wrongs(answers: Answers) -> Iterator[tuple[int, str]]:
    """Yield the number of each mutant that shows a fault, and the fault."""
    for number, answer in enumerate(answers):
        if isinstance(answer, Fate):
            yield number, f"it {answer}" + (f" in {LIMIT_S:g} s" if answer == Fate.HUNG else "")
        elif answer.wrong:
            yield number, answer.wrong


def _codec(number: int, frames: Sequence[Frame]) -> str:
    return NAMES[frames[number % len(frames)].syntax]


def _told(answers: Answers) -> list[Verdict]:
    return [answer for answer in answers if isinstance(answer, Verdict)]


def _worst_s(answers: Answers) -> float:
    return round(max((verdict.seconds for verdict in _told(answers)), default=math.nan), 3)


def _peak_mb(answers: Answers) -> float:
    return round(max((verdict.peak_mb for verdict in _told(answers)), default=math.nan))


def _header_figures(headers: Answers) -> Figures:
    outcomes = Counter(verdict.outcome for verdict in _told(headers))
    counts = {f"headers {outcome}": count for outcome, count in sorted(outcomes.items())}
    extremes = {"headers, worst seconds": _worst_s(headers), "headers, peak MB": _peak_mb(headers)}
    return {"header mutants": len(headers), **counts, **extremes}


def _codec_figures(pixels: Answers, frames: Sequence[Frame]) -> Figures:
    """Return the figures of each codec. The most memory is of the process that reads, not of one that decodes."""
    figures: Figures = {"codec mutants": len(pixels), "codecs, peak MB": _peak_mb(pixels)}
    for at, frame in enumerate(frames):
        name, own = NAMES[frame.syntax], pixels[at :: len(frames)]
        outcomes = Counter(verdict.outcome for verdict in _told(own))
        counted = ("decoded", "refused by the decoder", "refused undecoded")
        figures |= {f"{name} {outcome}": outcomes[outcome] for outcome in counted}
        figures |= {f"{name}, decoding processes that died": sum(verdict.worker_died for verdict in _told(own))}
        figures |= {f"{name}, worst seconds": _worst_s(own)}
    skipped = [NAMES[syntax] for syntax in ENCODERS if syntax not in {frame.syntax for frame in frames}]
    return figures | {"codecs skipped": ", ".join(skipped) or "none"}

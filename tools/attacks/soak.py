"""Ten thousand studies in one process: memory and open files that grow with what was done would end a night's run.

Each command runs in a child of its own, so that none profits from what another has freed. Through its `progress` the
child notes how much memory, how many open files and how much time each so many studies took. All studies are found
before the first is predicted, and their headers are kept: that is known, told as a figure, and not what is judged.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median, quantiles
from unittest.mock import patch

import numpy as np

from attacks import Figures, Outcome, scaled
from attacks.proc import open_files, stat
from attacks.tiny_bundle import tiny_config, write_tiny_bundle
from ich_seq.phantom import draw_study, write_study
from ich_seq.progress import Progress

PREDICT, REPORT, EXTRACT = "predict", "predict with pages", "extract-features"
STUDIES = {PREDICT: 10_000, REPORT: 1_200, EXTRACT: 10_000}
"""How many studies each command is given at full size."""

LEAST = {PREDICT: 240, REPORT: 30, EXTRACT: 30}
"""How many at any size."""

STAGES = {PREDICT: "predicting studies", REPORT: "predicting studies", EXTRACT: "embedding studies"}
READING = "reading headers"
SLICES, MATRIX, TEMPLATES, A_FOLDER = 3, 32, 8, 1000
SAMPLES = 120
WARM_UP = 0.25
"""Share of the studies, at the beginning, whose memory is not judged: allocators and caches find their size in it."""

MOST_MB_A_THOUSAND, ARENA_MB = 1.0, 2**20 / 1e6
"""Megabytes that memory may grow by in 1,000 studies, and what Python asks for at once: growth by less than one arena
cannot be told from none, so a short run finds coarse leaks only."""

MOST_DRIFT, TIMED_FROM_S = 0.25, 20.0
"""How much longer a study may take in the last third than in the first, as a share, and the shortest run that tells:
in a few seconds the machine's other work is all that is seen."""

Fault = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment of a run: how many studies were done, memory in use, open files, seconds of clock and processor."""

    stage: str
    done: int
    memory_mb: float
    open_files: int
    wall_s: float
    cpu_s: float


def run(work: Path, *, scale: float, seed: int = 0, fault: Fault | None = None) -> Outcome:
    """Let each command work through its studies; `fault` is done in the child first, for controls.

    It must be a function of a module, since the child imports it.
    """
    wanted = {name: scaled(full, scale, LEAST[name]) for name, full in STUDIES.items()}
    bundle = write_tiny_bundle(work / "bundle", seed=seed)
    failures: list[str] = []
    figures: Figures = {}
    for name, studies in wanted.items():
        given = work / f"{name} of {studies}"
        write_studies(given, studies, seed)
        code, samples = soaked(name, given, bundle, seed, fault)
        told = [f"it ended with {code}"] if code else list(faults(samples, STAGES[name]))
        failures += [f"{name}, {studies} studies, seed {seed}: {sentence}" for sentence in told]
        found = {} if code else measured(samples, STAGES[name])
        figures |= {f"{name}: {what}": value for what, value in found.items()}
        for left in work.glob(f"{given.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return Outcome(sum(wanted.values()), tuple(failures), figures)


# ---- the studies


def write_studies(root: Path, count: int, seed: int) -> None:
    """Write studies of SLICES small slices, A_FOLDER a folder: copies of a few files with other UIDs and places."""
    root.mkdir(parents=True)
    templates = [_Template.of(path) for path in _write_templates(root / "templates", seed)]
    for first in range(0, count, A_FOLDER):
        folder = root / f"{first:06d}"
        folder.mkdir()
        for study in range(first, min(first + A_FOLDER, count)):
            for k in range(SLICES):
                data = templates[(study + k) % TEMPLATES].bytes_of(study, k)
                (folder / f"{study}-{k}.dcm").write_bytes(data)


def _write_templates(folder: Path, seed: int) -> list[Path]:
    """Write slices of one phantom that stand for all others; they are removed once they are read."""
    study = draw_study(0, seed=seed, matrix=MATRIX)
    middle = slice(len(study.sop_uids) // 2, len(study.sop_uids) // 2 + TEMPLATES)
    few = replace(
        study,
        study_uid=STUDY_UID,
        series_uid=SERIES_UID,
        sop_uids=tuple(f"{SOP_UID}{k}" for k in range(TEMPLATES)),
        hounsfield=study.hounsfield[middle],
        corners_mm=np.array([[*study.corners_mm[0, :2], HEIGHT_MM]] * TEMPLATES),
        acquisitions=(1,) * TEMPLATES,
        tilt_deg=0.0,
        pixel_spacing_mm=4.0,
        rsna_style=True,
        syntax="explicit",
        scout=False,
    )
    folder.mkdir()
    return write_study(few, folder)


STUDY_UID, SERIES_UID, SOP_UID = "2.25.7100000000", "2.25.7200000000", "2.25.730000000"
HEIGHT_MM = 1234.567890
"""What stands in a template where a study's own number or height goes."""


@dataclass(frozen=True, slots=True)
class _Template:
    """The bytes of a file, and where in them the UIDs and the height stand."""

    data: bytes
    study: int
    series: int
    sop: int
    height: int

    @classmethod
    def of(cls, path: Path) -> _Template:
        data = path.read_bytes()
        path.unlink()
        places = [data.rindex(text.encode()) for text in (STUDY_UID, SERIES_UID, SOP_UID, f"{HEIGHT_MM:.6f}")]
        return cls(data, *places)

    def bytes_of(self, study: int, k: int) -> bytes:
        """Return the file of slice k of a study; a step is 5 mm and a bit, other in each study."""
        made = bytearray(self.data)
        number = f"{study:07d}{k:01d}".encode()
        for place, uid in ((self.study, STUDY_UID), (self.series, SERIES_UID)):
            made[place + len(uid) - 7 : place + len(uid)] = number[:7]
        made[self.sop + len(SERIES_UID) - 8 : self.sop + len(SERIES_UID)] = number
        height = f"{study % 500 + k * (5 + study % 7 / 10):011.6f}".encode()
        made[self.height : self.height + len(height)] = height
        return bytes(made)


# ---- the child


def soaked(name: str, given: Path, bundle: Path, seed: int, fault: Fault | None) -> tuple[int, list[Sample]]:
    """Run a command in a child that was forked from a process that computes nothing; return its exit code and notes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ich_seq.prediction", "ich_seq.extraction"])
    notes = given.with_name(f"{given.name}.json")
    child = context.Process(target=_soak, args=(name, given, bundle, notes, seed, fault))
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}):
        child.start()
    child.join()
    code = child.exitcode or 0
    return code, [] if code else [Sample(**sample) for sample in json.loads(notes.read_text())]


def _soak(name: str, given: Path, bundle: Path, notes: Path, seed: int, fault: Fault | None) -> None:
    import torch

    from ich_seq.extraction import extract_features
    from ich_seq.prediction import predict

    torch.set_num_threads(1)
    if fault is not None:
        fault()
    samples: list[Sample] = []
    out, note = given.with_name(f"{given.name}, results"), _noting(samples)
    if name == EXTRACT:
        extract_features(given, out, tiny_config(seed), device="cpu", workers=0, progress=note)
    else:
        predict(given, bundle, out, device="cpu", workers=0, report=name == REPORT, progress=note)
    notes.write_text(json.dumps([asdict(sample) for sample in samples]))


def _noting(samples: list[Sample]) -> Progress:
    """Return a `progress` that takes SAMPLES samples of each stage."""

    def note(stage: str, done: int, total: int) -> None:
        if done % max(1, total // SAMPLES) == 0 or done == total:
            held_mb, files = stat(os.getpid()).resident_mb, len(open_files(os.getpid()))
            samples.append(Sample(stage, done, held_mb, files, time.monotonic(), time.process_time()))

    return note


# ---- the judgement


def faults(samples: Sequence[Sample], stage: str) -> Iterator[str]:
    """Yield a sentence for each of memory, open files and time that grows in the course of a stage."""
    found = measured(samples, stage)
    growth, slower = found["MB per 1,000 studies"], found["last third slower by"]
    if growth > MOST_MB_A_THOUSAND and growth / 1000 * (1 - WARM_UP) * found["studies"] > ARENA_MB:
        yield f"memory grows by {growth:.2f} MB per 1,000 studies, not by {MOST_MB_A_THOUSAND:g} at most"
    if found["most open files"] > found["fewest open files"]:
        yield f"open files range from {found['fewest open files']} to {found['most open files']}"
    if slower > MOST_DRIFT and found["seconds"] >= TIMED_FROM_S:
        yield f"studies take {slower:.0%} longer in the last third than in the first, not {MOST_DRIFT:.0%} at most"


def measured(samples: Sequence[Sample], stage: str) -> dict[str, float]:
    """Return the figures of a run, of its samples in the order of time.

    Time is the processor's, of which the quickest quarter of a third is taken: others use the machine too.
    """
    own = [sample for sample in samples if sample.stage == stage]
    read = [sample for sample in samples if sample.stage == READING]
    warm = own[round(WARM_UP * len(own)) :]
    a_study = [(b.cpu_s - a.cpu_s) / (b.done - a.done) for a, b in pairwise(own)]
    third = len(a_study) // 3
    first, last = (quantiles(part)[0] for part in (a_study[:third], a_study[-third:]))
    open_files = [sample.open_files for sample in warm]
    return {
        "studies": own[-1].done,
        "seconds": round(own[-1].wall_s - samples[0].wall_s, 1),
        "CPU ms a study": round(1000 * median(a_study), 2),
        "MB per 1,000 studies": round(1000 * slope(warm), 3),
        "MB of headers per 1,000 studies": round(1000 * SLICES * slope(read), 2),
        "most MB": round(max(sample.memory_mb for sample in own), 1),
        "fewest open files": min(open_files),
        "most open files": max(open_files),
        "last third slower by": round(last / first - 1, 3),
    }


def slope(samples: Sequence[Sample]) -> float:
    """Return by how many MB memory grows with each that is done.

    It is the median slope of all pairs of samples (Theil 1950, Sen 1968): one step does not make a trend.
    """
    return median((b.memory_mb - a.memory_mb) / (b.done - a.done) for a, b in combinations(samples, 2))

"""Many files into studies: one series each, its slices in order from feet to head, its geometry known."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ich_seq import NothingUsableError
from ich_seq.codestreams import read_frame, read_items
from ich_seq.dicom import SliceHeader
from ich_seq.dicom import read_headers as read_file
from ich_seq.dicom_files import opened
from ich_seq.files import sha256_bytes, short_hash
from ich_seq.inputs import Given, InputFile, Listing, as_paths, list_inputs, named
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Reason, Refused, Unused
from ich_seq.syntaxes import NATIVE

SAME_POSITION_MM = 0.01
"""Slices closer than this lie at one position: a repeated pass, real in 1.3 % of RSNA studies."""

MAX_SLICES = 2048
"""Of a series: a head in steps of 0.15 mm. A study is held in memory as a whole; perfusion series have many more."""

ZONE_CHANGE_MM = 0.5
"""Steps that differ by more belong to different zones: 43 % of RSNA studies have 2.5 mm below 5 mm."""

ZONE_MIN_STEPS = 3
"""Fewer equal steps in a row are jitter, not a zone."""

GAP_FACTOR = 1.5
"""A step longer than this times both its neighbours is a hole where slices are missing."""

PARALLEL_FROM = 8192
"""Fewer files are read faster (0.2 ms each) than worker processes start (over a second)."""

CHUNK = 64
"""Files handed to a worker process at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How the N slices of a study lie along their normal. Recorded, never a cause of refusal.

    `spacing_mm` is the median step (0 for one slice); `zones` counts stretches of constant step;
    `gaps` counts holes; `duplicates` slices that repeat a position; `tilt_deg` is the gantry tilt, the
    turn of the normal about the patient's left-right axis.
    """

    spacing_mm: float
    min_spacing_mm: float
    max_spacing_mm: float
    zones: int
    gaps: int
    duplicates: int
    tilt_deg: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One series of one study, ordered: N slices and their `positions_mm`, (N,) float64, ascending.

    A study whose `patient_id` an anonymiser emptied stands for a patient of its own.
    """

    uid: str
    patient_id: str
    series_uid: str
    slices: tuple[SliceHeader, ...]
    positions_mm: NDArray[np.float64]
    geometry: Geometry

    @property
    def matrix(self) -> tuple[int, int]:
        """Return (H, W) of most slices."""
        return Counter((h.rows, h.columns) for h in self.slices).most_common(1)[0][0]

    @property
    def scanner(self) -> str:
        """Return maker and model as most slices name them."""
        return Counter(h.scanner for h in self.slices).most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the inputs held: each of `n_files` is a slice of a study or an entry of `unused`, or both by its frames."""

    studies: tuple[Study, ...]
    unused: tuple[Unused, ...]
    n_files: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of every file seen: `files` = `used` + `excluded` + `rejected`; `reasons` counts the latter two.

    `lost_frames` are those of used files that were rejected.
    """

    files: int
    used: int
    excluded: int
    rejected: int
    reasons: dict[str, int]
    lost_frames: int = 0

    @property
    def named_reasons(self) -> str:
        """Return the reasons as a message names them: decode 1, other_file 2."""
        return ", ".join(f"{reason} {n}" for reason, n in self.reasons.items())


def find_studies(
    root: Given,
    *,
    skip: Path | None = None,
    workers: int = 0,
    hide_names: bool = False,
    progress: Progress = silent,
) -> Findings:
    """Find every head CT study in a folder, a file, an archive, what a DICOMDIR names, or in several of these.

    Studies come sorted by UID and `unused` by file, so that the answer does not depend on names,
    order or `workers` (processes that read headers; 0 reads in this one). `skip` is a folder that is
    passed over, such as the one being written. With `hide_names` a file is known by a hash of its path
    below the inputs, since people name files after patients. Raises UsageError if an input is not there, and
    NothingUsableError if there is no file.
    """
    listing = list_files_of(root, skip, hide_names=hide_names)
    return findings_of(read_headers(listing.sources, workers=workers, progress=progress), listing.unused)


def list_files_of(root: Given, skip: Path | None, *, hide_names: bool) -> Listing:
    """Return every file of the inputs, and what reports call it. Raises as `find_studies` does."""
    paths = as_paths(root)
    listing = list_inputs(paths, skip, short_hash if hide_names else str)
    if not listing.sources and not listing.unused:
        raise NothingUsableError(f"{named(paths)} holds no files; give a folder of DICOM files.")
    return listing


def read_headers(
    sources: Sequence[InputFile], *, workers: int = 0, progress: Progress = silent
) -> Generator[tuple[SliceHeader | Unused, ...], None, None]:
    """Yield what became of each file, in their order; many are read by `workers` processes (0: in this one)."""
    with closing(_read_headers(sources, workers)) as results:  # else a traceback could keep its processes alive
        for done, result in enumerate(results, start=1):
            yield result
            progress("reading headers", done, len(sources))


def findings_of(results: Iterable[tuple[SliceHeader | Unused, ...]], unread: Iterable[Unused] = ()) -> Findings:
    """Return what inputs held, of what became of each of their files, in whatever order, and of files `unread`."""
    headers: list[SliceHeader] = []
    unused = list(unread)
    n_files = len(unused)
    for result in results:
        headers.extend(one for one in result if isinstance(one, SliceHeader))
        unused.extend(one for one in result if isinstance(one, Unused))
        n_files += 1
    studies, left_over = group_studies(headers)
    return Findings(tuple(studies), tuple(sorted(unused + left_over, key=_listed)), n_files)


def _listed(unused: Unused) -> tuple[str, int]:
    """Sort what is listed by file, and by frame."""
    return unused.file, unused.frame


def _read_headers(
    sources: Sequence[InputFile], workers: int
) -> Generator[tuple[SliceHeader | Unused, ...], None, None]:
    if workers < 1 or len(sources) < PARALLEL_FROM:
        yield from itertools.starmap(read_file, sources)
        return
    done = 0
    try:
        for result in _read_in_pool(sources, workers):
            done += 1
            yield result
    except BrokenProcessPool:  # a worker was killed, or could not start in a script without a __main__ guard
        yield from itertools.starmap(read_file, sources[done:])


def _read_in_pool(sources: Sequence[InputFile], workers: int) -> Iterator[tuple[SliceHeader | Unused, ...]]:
    context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(read_file, *zip(*sources, strict=True), chunksize=CHUNK)
        except BaseException:  # what has not been begun is not waited for
            pool.shutdown(cancel_futures=True)
            raise


def group_studies(headers: Iterable[SliceHeader]) -> tuple[list[Study], list[Unused]]:
    """Group headers by Study Instance UID, choose one series a study, order its slices.

    The series is the one with most slices among those of ORIGINAL image type (or among all, if none
    is); the lower UID settles a draw. Returns the studies sorted by UID and the files not taken.
    """
    by_study: dict[str, list[SliceHeader]] = defaultdict(list)
    unused: list[Unused] = []
    for header in _distinct(headers, unused):
        by_study[header.study_uid].append(header)
    studies = [_study(uid, _of_one_patient(by_study[uid], unused), unused) for uid in sorted(by_study)]
    return [study for study in studies if study is not None], unused


def _of_one_patient(headers: Sequence[SliceHeader], unused: list[Unused]) -> Sequence[SliceHeader]:
    """Return the slices of a study, none if they name several patients: whose head it is cannot be known."""
    if len({h.patient_id for h in headers if h.patient_id}) < 2:
        return headers
    detail = "Slices of this study name different patients; keep those of the right one."
    unused.extend(Unused(h.file, Reason.PATIENT_CONFLICT, detail, h.study_uid, h.frame) for h in headers)
    return ()


def _distinct(headers: Iterable[SliceHeader], unused: list[Unused]) -> Iterator[SliceHeader]:
    """Yield one header a SOP Instance UID; copies are left out, contradictions refused on both sides."""
    by_sop: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        by_sop[header.sop_uid].append(header)
    for same in by_sop.values():
        same.sort(key=_preferred)
        if difference := _difference(same):
            detail = f"Files with the same SOP Instance UID differ in {difference}; keep the right one."
            unused.extend(Unused(h.file, Reason.SOP_CONFLICT, detail, h.study_uid, h.frame) for h in same)
            continue
        detail = f"A copy of {same[0].file}, by its SOP Instance UID."
        unused.extend(Unused(h.file, Reason.DUPLICATE, detail, h.study_uid, h.frame) for h in same[1:])
        yield same[0]


def _difference(same: Sequence[SliceHeader]) -> str:
    """Return what makes files of one SOP Instance UID more than copies, or nothing; one file is not read for it."""
    if len({_identity(h) for h in same}) > 1:
        return "study or geometry"
    return "their pixels" if len(same) > 1 and _pixels_differ(same) else ""


def _pixels_differ(same: Sequence[SliceHeader]) -> bool:
    """Tell whether files that are stored alike hold other pixels; copies in another encoding are not compared."""
    by_form: dict[str, set[str]] = defaultdict(set)
    for header in (h for h in same if h.transfer_syntax != DeflatedExplicitVRLittleEndian):
        with suppress(OSError, Refused):  # which is told when the pixels are read
            by_form[NATIVE.get(header.transfer_syntax, header.transfer_syntax)].add(_pixels_sha256(header))
    return any(len(hashes) > 1 for hashes in by_form.values())


def _pixels_sha256(h: SliceHeader) -> str:
    with opened(h.path, h.member, whole=True) as (stream, _, end):
        stream.seek(h.pixel_offset)
        if h.transfer_syntax in NATIVE:
            return sha256_bytes(stream.read(2 * h.rows * h.columns))
        return sha256_bytes(read_items(stream, h.pixel_end) if h.frame else read_frame(stream, end))


def _preferred(h: SliceHeader) -> tuple[object, ...]:
    """Sort copies of a slice, whatever they are called: uncompressed ones first, then those that nobody cut short."""
    return h.transfer_syntax not in NATIVE, h.transfer_syntax, -h.file_bytes, h.path, h.member, h.file


def _identity(h: SliceHeader) -> tuple[object, ...]:
    """Return to whom a slice belongs, where it lies and how it is scaled: the same in a copy of another encoding."""
    where = h.position_mm, h.orientation, h.rows, h.columns, h.spacing_mm
    return h.patient_id, h.study_uid, h.series_uid, *where, h.slope, h.intercept


def _study(uid: str, headers: Sequence[SliceHeader], unused: list[Unused]) -> Study | None:
    sizes = Counter(h.series_uid for h in headers)
    fitting = [h for h in headers if sizes[h.series_uid] <= MAX_SLICES]
    if not fitting:
        detail = f"All series of the study have more than {MAX_SLICES} slices, which no head has."
        unused.extend(Unused(h.file, Reason.TOO_LARGE, detail, uid, h.frame) for h in headers)
        return None
    chosen = _choose_series(fitting)
    detail = "Another series of this study was taken (ORIGINAL before DERIVED, then most slices)."
    unused.extend(Unused(h.file, Reason.OTHER_SERIES, detail, uid, h.frame) for h in headers if h.series_uid != chosen)
    slices, positions = order_slices([h for h in headers if h.series_uid == chosen])
    return Study(
        uid=uid,
        patient_id=min((h.patient_id for h in slices if h.patient_id), default=f"study {uid}"),
        series_uid=chosen,
        slices=slices,
        positions_mm=positions,
        geometry=describe(positions, common_normal(slices)),
    )


def _choose_series(headers: Sequence[SliceHeader]) -> str:
    counts = Counter(h.series_uid for h in headers)
    original = {h.series_uid for h in headers if "DERIVED" not in h.image_type}
    return min(counts, key=lambda uid: (uid not in original, -counts[uid], uid))


def order_slices(headers: Sequence[SliceHeader]) -> tuple[tuple[SliceHeader, ...], NDArray[np.float64]]:
    """Order the N slices of one series from feet to head; return them and their (N,) float64 mm.

    The key is Image Position (Patient) projected on the common normal. Slices at one position are
    kept, in the order of acquisition number, instance number, SOP Instance UID. Tilt, uneven spacing
    and gaps are no obstacle. InstanceNumber and file names never decide about positions.
    """
    positions = slice_positions(np.array([h.position_mm for h in headers]), common_normal(headers))
    level = _levels(positions)
    order = sorted(
        range(len(headers)),
        key=lambda i: (level[i], headers[i].acquisition, headers[i].instance, headers[i].sop_uid),
    )
    return tuple(headers[i] for i in order), np.maximum.accumulate(positions[order])


def _levels(positions_mm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the distinct positions of (N,) slices from 0 at the feet; equal but for rounding counts as equal."""
    rising = np.argsort(positions_mm, kind="stable")
    apart = np.diff(positions_mm[rising], prepend=positions_mm[rising[:1]]) >= SAME_POSITION_MM
    level = np.empty(len(positions_mm), np.int64)
    level[rising] = np.cumsum(apart)
    return level


def slice_positions(corners_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project (N, 3) slice corners on a unit normal (3,): (N,) positions in mm."""
    return corners_mm @ normal


def common_normal(headers: Sequence[SliceHeader]) -> NDArray[np.float64]:
    """Return the unit normal (3,) that most slices share, turned to point to the patient's head."""
    orientations = Counter(h.orientation for h in headers)
    most = max(orientations.items(), key=lambda item: (item[1], item[0]))[0]
    return upward_normal(np.array(most))


def upward_normal(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit normal (..., 3) of direction cosines (..., 6), its largest component positive.

    Row x column alone would run head to feet in a mirrored image (one cosine negated), and a GRU
    trained one way would see the other.
    """
    normal = np.cross(orientation[..., :3], orientation[..., 3:])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    largest = np.take_along_axis(normal, np.abs(normal).argmax(axis=-1)[..., None], axis=-1)
    return np.asarray(normal * np.sign(largest))


def describe(positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> Geometry:
    """Describe the spacing of ascending positions, (N,) mm, and the tilt of their normal (3,)."""
    steps = np.diff(positions_mm)
    repeated = steps < SAME_POSITION_MM
    steps = steps[~repeated]
    some = steps if len(steps) else np.zeros(1)
    return Geometry(
        spacing_mm=float(np.median(some)),
        min_spacing_mm=float(some.min()),
        max_spacing_mm=float(some.max()),
        zones=_count_zones(steps),
        gaps=_count_gaps(steps),
        duplicates=int(repeated.sum()),
        tilt_deg=float(np.degrees(np.arctan2(normal[1], normal[2]))),
    )


def _count_zones(steps_mm: NDArray[np.float64]) -> int:
    """Count the stretches of at least ZONE_MIN_STEPS like steps whose step differs from the stretch before."""
    zones: list[float] = []
    for stretch in np.split(steps_mm, np.flatnonzero(np.abs(np.diff(steps_mm)) > ZONE_CHANGE_MM) + 1):
        step = float(np.median(stretch)) if len(stretch) >= ZONE_MIN_STEPS else None
        if step is not None and (not zones or abs(zones[-1] - step) > ZONE_CHANGE_MM):
            zones.append(step)
    return max(1, len(zones))


def _count_gaps(steps_mm: NDArray[np.float64]) -> int:
    if len(steps_mm) < 2:
        return 0
    beside = np.maximum(np.concatenate([steps_mm[1:2], steps_mm[:-1]]), np.concatenate([steps_mm[1:], steps_mm[-2:-1]]))
    return int((steps_mm > GAP_FACTOR * beside).sum())


def account(findings: Findings, refused: Sequence[Unused]) -> tuple[list[Unused], Counts]:
    """Return every file that is no slice of a study, sorted, the later `refused` among them, and the counts of all.

    A file that was refused several times, for several reasons, is listed and counted once. One of several frames is
    used if any of them is; the others are listed by their number, and those `rejected` counted as `lost_frames`.
    """
    once = {
        (u.file, u.frame): u for u in sorted(refused, key=lambda u: (*_listed(u), u.reason, u.detail), reverse=True)
    }
    listed = [*findings.unused, *once.values()]
    whole = [u for u in listed if not u.frame]
    parts = [u for u in listed if u.frame]
    used = _files_used(findings, once.keys()) if parts else set()
    gone = _without_frames([u for u in parts if u.file not in used])
    partly = [u for u in parts if u.file in used]
    unused = whole + [group[0] for group in gone]
    fates = Counter(u.fate for u in unused)
    counts = Counts(
        files=findings.n_files,
        used=findings.n_files - len(unused),
        excluded=fates["excluded"],
        rejected=fates["rejected"],
        reasons=dict(sorted(Counter(str(u.reason) for u in unused).items())),
        lost_frames=sum(u.fate == "rejected" for u in partly),
    )
    return sorted([*whole, *partly, *itertools.chain.from_iterable(gone)], key=_listed), counts


def _files_used(findings: Findings, lost: Collection[tuple[str, int]]) -> set[str]:
    slices = (h for study in findings.studies for h in study.slices)
    return {h.file for h in slices if (h.file, h.frame) not in lost}


def _without_frames(parts: Sequence[Unused]) -> list[list[Unused]]:
    """Return what is listed of each file of which no frame is used, first the verdict that counts: a rejection.

    Where all frames met with the same, it is said once, of the file.
    """
    by_file: dict[str, list[Unused]] = defaultdict(list)
    for unused in sorted(parts, key=lambda u: (u.fate != "rejected", *_listed(u))):
        by_file[unused.file].append(unused)
    return [
        same if len({(u.reason, u.detail) for u in same}) > 1 else [replace(same[0], frame=0)]
        for same in by_file.values()
    ]

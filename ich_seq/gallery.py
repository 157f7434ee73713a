"""What the pixels of a collection look like: one slice through every window, slices of each subtype side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ich_seq.collection import Collection, Labelling, labelling
from ich_seq.config import AIR_HU
from ich_seq.dicom import SliceHeader
from ich_seq.files import short_hash
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS, SUBTYPES
from ich_seq.pictures import WINDOWS_HU, shown, sigmoid_shown
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Refused, Unused

MOST_TILES, TILES_A_ROW = 6, 3
TILE_PIXELS, SEAM_PIXELS = 256, 4
WINDOW_PIXELS = 384
HISTOGRAM_HU = (-100, 150)
BIN_HU = 2

TISSUES_HU: dict[str, tuple[float, float]] = {
    "CSF": (0, 15),
    "white matter": (20, 30),
    "grey matter": (35, 45),
    "acute blood": (50, 90),
}
"""Usual ranges on head CT without contrast, rounded, after the table at radclass.mudr.org (Prokop 2003: white matter 20
to 30, grey 37 to 45, haematoma 40 to 90). Clots are densest; fresh or thin blood, and that of the anaemic, is less."""

NONE, MIDDLE = "none", "middle"
"""Montages of slices without haemorrhage, and of the middle of studies where there are no labels."""

THIN_BLOOD = ("epidural", "subdural")
"""Lie along the skull, and vanish beside it in the brain window."""

SENTENCES = {
    "full range": "All that the slice holds, in 256 greys: each spans many HU, so blood and brain look alike.",
    "brain": "0 to 80 HU. Grey and white matter part, acute blood is bright, all bone is white.",
    "subdural": "-20 to 180 HU. Thin blood along the skull stands out, which the brain window lets bone outshine.",
    "soft tissue": "-150 to 230 HU. Scalp, its swelling, muscle and fat.",
    "bone": "-800 to 2000 HU. The skull's tables and fractures; brain is one grey.",
    "sigmoid brain": "The brain window by a sigmoid: what lies beyond its ends is pressed together, not cut off.",
}

Grey = NDArray[np.uint8]
Hounsfield = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Montage:
    """Slices side by side, `picture` (H, W) grey, and the share of all their pixels in each bin of HISTOGRAM_HU."""

    name: str
    window: str
    study_uids: tuple[str, ...]
    picture: Grey
    shares: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """`windows` of one slice, by name, the study it is from, `montages`, and the slices that could not be read."""

    windows: dict[str, Grey]
    study_uid: str
    montages: tuple[Montage, ...]
    refused: tuple[Unused, ...]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads slices, and keeps what became of those that cannot be read."""

    refused: dict[tuple[str, int], Unused]

    def first(self, candidates: Sequence[SliceHeader]) -> tuple[SliceHeader, Hounsfield] | None:
        """Return the first of these slices that can be read, and its HU."""
        for header in candidates:
            if (header.file, header.frame) in self.refused:
                continue
            try:
                return header, read_hounsfield(header)
            except Refused as refusal:
                verdict = refusal.verdict(header.file, header.frame)
                self.refused[header.file, header.frame] = verdict
        return None


def hang(found: Collection, progress: Progress = silent) -> Gallery | None:
    """Choose slices of a folder of DICOM files and show them; None for tables, and if no slice can be read.

    What is chosen depends on UIDs and labels only. Pixels of other slices are not looked at.
    """
    if found.kind != "dicom" or not found.studies:
        return None
    reader, slices = _Reader({}), labelling(found)
    wanted = [MIDDLE] if slices is None else [*SUBTYPES, NONE]
    montages = []
    for done, name in enumerate(wanted, start=1):
        made = _montage(name, _candidates(found, slices, name), reader)
        montages += [] if made is None else [made]
        progress("drawing pictures", done, len(wanted))
    typical = [one for name in ("any", MIDDLE) for of_study in _candidates(found, slices, name) for one in of_study]
    chosen = reader.first(typical)
    refused = tuple(reader.refused[slice_] for slice_ in sorted(reader.refused))
    if chosen is None:
        return Gallery(windows={}, study_uid="", montages=tuple(montages), refused=refused)
    header, hu = chosen
    return Gallery(
        windows=through_windows(hu, header.spacing_mm),
        study_uid=header.study_uid,
        montages=tuple(montages),
        refused=refused,
    )


def _candidates(found: Collection, slices: Labelling | None, name: str) -> list[list[SliceHeader]]:
    """Return the slices that may stand for a name, a list a study, the middle ones first.

    Studies come in the order of a hash, which is the same each time and prefers none.
    """
    by_study: list[tuple[str, list[SliceHeader]]] = []
    start = 0
    for study in found.studies:
        inside = slice(start, start := start + len(study.slices))
        fitting = _fitting(slices, inside, name) if name != MIDDLE else np.ones(len(study.slices), bool)
        chosen = [study.slices[i] for i in from_the_middle(fitting)]
        if chosen:
            by_study.append((short_hash(f"{name} {study.uid}"), chosen))
    return [chosen for _, chosen in sorted(by_study, key=lambda item: item[0])]


def _fitting(slices: Labelling | None, inside: slice, name: str) -> NDArray[np.bool_]:
    """Return which slices of a study have a label, or for NONE lie in a study that has none, (N,)."""
    if slices is None:
        return np.zeros(inside.stop - inside.start, bool)
    targets, labelled = slices.targets[inside], slices.labelled[inside]
    if name == NONE:
        return labelled & (not targets.any())
    return labelled & (targets[:, LABELS.index(name)] > 0)


def from_the_middle(fitting: NDArray[np.bool_]) -> list[int]:
    """Return the indices of the fitting ones of N slices, the middle one of them first, then outwards."""
    index = np.flatnonzero(fitting)
    middle = index[len(index) // 2] if len(index) else 0
    return sorted(map(int, index), key=lambda i: (abs(i - middle), i))


def _montage(name: str, candidates: Sequence[Sequence[SliceHeader]], reader: _Reader) -> Montage | None:
    """Show one slice each of the first studies that have one that can be read."""
    window = "subdural" if name in THIN_BLOOD else "brain"
    read = list(_take(candidates, reader))
    if not read:
        return None
    return Montage(
        name=name,
        window=window,
        study_uids=tuple(header.study_uid for header, _ in read),
        picture=tiled([shown(fitted(hu, header.spacing_mm, TILE_PIXELS), WINDOWS_HU[window]) for header, hu in read]),
        shares=hu_shares([hu for _, hu in read]),
    )


def _take(candidates: Sequence[Sequence[SliceHeader]], reader: _Reader) -> Iterator[tuple[SliceHeader, Hounsfield]]:
    taken = 0
    for of_study in candidates:
        if taken == MOST_TILES:
            return
        chosen = reader.first(of_study)
        if chosen is not None:
            taken += 1
            yield chosen


def through_windows(hu: Hounsfield, spacing_mm: tuple[float, float]) -> dict[str, Grey]:
    """Return a slice (H, W) of HU as grey pictures by the names of SENTENCES, each WINDOW_PIXELS wide at most."""
    small = fitted(hu, spacing_mm, min(WINDOW_PIXELS, max(hu.shape)))
    low, high = float(hu.min()), float(hu.max())
    full = shown(small, ((low + high) / 2, max(high - low, 1)))
    ramps = {name: shown(small, window_hu) for name, window_hu in WINDOWS_HU.items()}
    return {"full range": full} | ramps | {"sigmoid brain": sigmoid_shown(small, WINDOWS_HU["brain"])}


def fitted(hu: Hounsfield, spacing_mm: tuple[float, float], side: int) -> Hounsfield:
    """Fit a slice (H, W), air around it, into a square (side, side), its pixels made square by `spacing_mm`."""
    height_mm, width_mm = hu.shape[0] * spacing_mm[0], hu.shape[1] * spacing_mm[1]
    scale = side / max(height_mm, width_mm)
    rows, columns = max(1, round(height_mm * scale)), max(1, round(width_mm * scale))
    inner = cv2.resize(hu, (columns, rows), interpolation=cv2.INTER_AREA)
    square = np.full((side, side), AIR_HU, np.float32)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = inner
    return square


def tiled(tiles: Sequence[Grey]) -> Grey:
    """Lay square tiles (S, S) in rows of TILES_A_ROW, a black seam between them; a last row may be short."""
    side = len(tiles[0])
    across, down = min(TILES_A_ROW, len(tiles)), -(-len(tiles) // TILES_A_ROW)
    step = side + SEAM_PIXELS
    whole = np.zeros((down * step - SEAM_PIXELS, across * step - SEAM_PIXELS), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = step * (i // TILES_A_ROW), step * (i % TILES_A_ROW)
        whole[top : top + side, left : left + side] = tile
    return whole


def histogram_edges_hu() -> NDArray[np.int64]:
    """Return the edges of the bins of a montage's histogram, in HU."""
    return np.arange(HISTOGRAM_HU[0], HISTOGRAM_HU[1] + BIN_HU, BIN_HU)


def hu_shares(slices: Sequence[Hounsfield]) -> NDArray[np.float64]:
    """Return the share of all pixels of slices (H, W) in each bin; what lies beyond the bins counts in the whole."""
    edges = histogram_edges_hu()
    counts = sum((np.histogram(hu, edges)[0] for hu in slices), np.zeros(len(edges) - 1, np.int64))
    return np.asarray(counts / sum(hu.size for hu in slices))

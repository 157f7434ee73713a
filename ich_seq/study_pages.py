"""The pages of a prediction: a worklist, and for each study its probabilities along the head and its key slices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ich_seq import OutputError, windows
from ich_seq.activation import activation_maps
from ich_seq.bundle import Bundle
from ich_seq.config import AIR_HU
from ich_seq.dicom import SliceHeader
from ich_seq.encoder import SliceEncoder
from ich_seq.files import PARTIAL, make_folder, remove, short_hash, write_bytes
from ich_seq.highlights import flags, key_slices
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS
from ich_seq.pages import render
from ich_seq.pictures import PICTURE_SIDE, READ_IN, jpeg_uri, overlaid, read_in_windows
from ich_seq.reasons import Refused
from ich_seq.report import StudyPrediction, StudyResult, by_likelihood
from ich_seq.studies import Counts, Study

REPORT, PAGES = "report.html", "report"
OURS = re.compile(rf"([0-9a-f]{{16}}|worklist-[0-9]+)\.html({re.escape(PARTIAL)})?")
"""What is written into the folder of pages, and what a kill leaves of it."""

ANY = LABELS.index("any")

AROUND_HU = -300
"""Air, clothes and head-rest lie below, and are not shaded."""

ROWS_A_PAGE = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySlice:
    """A slice worth looking at: its number from the feet, from 1, and pictures of it by name, as data URIs.

    `instance` is its Instance Number (0: none), `left` the patient's side on the left of the pictures, R or L.
    """

    number: int
    instance: int
    left: str
    position_mm: float
    probability: float
    views: Mapping[str, str]


class Unseen(Protocol):
    """A study without a result, and why."""

    @property
    def study_uid(self) -> str:
        """Return its Study Instance UID."""

    @property
    def reason(self) -> str:
        """Return why it has none, in a few words."""


@dataclass(frozen=True, slots=True)
class StudyPages:
    """Writes the page of each study as it is predicted, below `out`, and the worklist once all are."""

    out: Path
    bundle: Bundle

    def clear(self) -> None:
        """Take away the pages of an older run; what else is in their folder is not ours. Raises OutputError."""
        folder = self.out / PAGES
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link, and its files are none of ours; remove it or choose another --out.")
        remove([self.out / REPORT, *(path for path in folder.glob("*.html*") if OURS.fullmatch(path.name))])
        with suppress(OSError):  # it is not there, or holds something of somebody's
            folder.rmdir()

    def write_study(self, study: Study, said: StudyPrediction) -> None:
        """Write the page of one study."""
        make_folder(self.out / PAGES)
        encoders = [embedder.encoder for embedder in self.bundle.embedders.values()]
        chosen = key_slices(said.slice_probabilities[:, ANY])
        across = _across(said.positions_mm)
        pictures = _pictures(study, said, chosen, encoders[0])
        page = render(
            "study.html",
            said=said,
            result=said.result,
            flags=flags(said.result),
            strips=_strips(said, across),
            marks=_rounded(across),
            keys=_rounded(across[chosen]),
            pictures=pictures,
            shaded=any(len(p.views) > len(READ_IN) for p in pictures),
            several=len(encoders) > 1,
            few=self.bundle.hardly_learnt,
        )
        write_bytes(self.out / study_page(said.result.study_uid), page)

    def write_worklist(
        self, results: Sequence[StudyResult], counts: Counts, unseen: Sequence[Unseen] = (), every_s: int = 0
    ) -> None:
        """Write the worklist, likeliest first, at most ROWS_A_PAGE studies a page; report.html is its first page.

        `unseen` are studies that somebody has to look at because no network did. With `every_s` the pages ask the
        browser to load them anew so often.
        """
        ranked = by_likelihood(results)
        starts = range(0, max(1, len(ranked)), ROWS_A_PAGE)
        named = any(result.patient_id is not None for result in ranked)
        for page, start in enumerate(starts):
            rows = [
                {"number": number, "result": r, "flags": flags(r), "link": _from(page, study_page(r.study_uid))}
                for number, r in enumerate(ranked[start : start + ROWS_A_PAGE], start=start + 1)
            ]
            pages = [
                {
                    "first": first + 1, "last": min(first + ROWS_A_PAGE, len(ranked)), "here": other == page,
                    "link": _from(page, _worklist_page(other)),
                }
                for other, first in enumerate(starts)
            ]  # fmt: skip
            html = render(
                "worklist.html", rows=rows, pages=pages, studies=len(ranked), counts=counts, card=self.bundle.card,
                card_sha256=self.bundle.card_sha256, name=self.bundle.name, few=self.bundle.hardly_learnt,
                named=named, unseen=unseen, every_s=every_s,
            )  # fmt: skip
            write_bytes(self.out / _worklist_page(page), html)
        remove([self.out / _worklist_page(len(starts))])  # a study may have lost its result


def study_page(study_uid: str) -> str:
    """Return where the page of a study lies, from the folder of results; its name is a hash, never the UID."""
    return f"{PAGES}/{short_hash(study_uid)}.html"


def _worklist_page(page: int) -> str:
    return REPORT if page == 0 else f"{PAGES}/worklist-{page + 1}.html"


def _from(page: int, target: str) -> str:
    """Return a link from a page of the worklist to a file of the report; only the first is not in the folder."""
    return target if page == 0 else f"../{target}"


def _across(positions_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where slices stand in a strip of 300, feet left; a single slice stands in the middle."""
    span = positions_mm[-1] - positions_mm[0]
    return 300 * (positions_mm - positions_mm[0]) / span if span > 0 else np.full(len(positions_mm), 150.0)


def _strips(said: StudyPrediction, across: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return for each label the lines of CNN, RNN and blend as points of SVG, and where the blend is highest."""
    strips = []
    for k, label in enumerate(LABELS):
        blend = said.slice_probabilities[:, k]
        top = int(blend.argmax())
        lines = {name: _points(across, predicted.slices[:, k]) for name, predicted in said.beside.items()}
        strips.append({"label": label, "most": blend[top], "where_mm": said.positions_mm[top], "lines": lines})
    return strips


def _points(across: NDArray[np.float64], p: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{100 * (1 - y):.1f}" for x, y in zip(across, p, strict=True))


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(x), 1) for x in values]


def _pictures(study: Study, said: StudyPrediction, chosen: Sequence[int], encoder: SliceEncoder) -> list[KeySlice]:
    """Return pictures of the chosen slices; none if a file cannot be read any more."""
    by_sop = {h.sop_uid: h for h in study.slices}
    headers = [by_sop[sop] for sop in said.sop_uids]
    beside = [_beside(encoder, index, len(headers)) for index in chosen]
    try:
        read = sorted({i for each in (chosen, *beside) for i in each if i is not None})
        hu = {i: read_hounsfield(headers[i]) for i in read}
        seen = [[_shown(hu, headers, encoder, i) for i in each] for each in beside]
        large = [_resampled(hu[i], headers[i], encoder, PICTURE_SIDE) for i in chosen]
        maps = activation_maps(encoder, torch.from_numpy(np.stack(seen)).to(encoder.mean.device))
    except (Refused, RuntimeError, MemoryError):  # of a GPU that is full, too: a picture is not worth a prediction
        return []
    likely = said.slice_probabilities[chosen, ANY]
    shades = [None] * len(chosen) if maps is None else list(shades_of(maps[:, ANY], likely))
    return [
        KeySlice(
            number=index + 1,
            instance=headers[index].instance,
            left="R" if headers[index].orientation[0] > 0 else "L",
            position_mm=float(said.positions_mm[index]),
            probability=float(p),
            views=_views(picture, shade),
        )
        for index, picture, p, shade in zip(chosen, large, likely, shades, strict=True)
    ]


def shades_of(maps: NDArray[np.float32], probabilities: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return how strongly to shade each place of a study's key slices, (n, h, w) in 0..1.

    What speaks for a finding, as a share of the most that does in any of them, times the slice's probability: an
    unlikely slice is not to glow like a likely one.
    """
    raised = np.maximum(maps, 0)
    most = float(raised.max(initial=0))
    shares = raised / most if most > 0 else raised
    return np.asarray(shares * probabilities[:, None, None], np.float32)


def _beside(encoder: SliceEncoder, index: int, count: int) -> list[int | None]:
    """Return the J slices that an encoder is shown with one of N, None for air, as `windows.with_neighbours` does."""
    wanted = [index + offset for offset in encoder.spec.neighbours]
    if encoder.spec.air_beyond:
        return [i if 0 <= i < count else None for i in wanted]
    return [min(max(i, 0), count - 1) for i in wanted]


def _shown(
    hu: Mapping[int, NDArray[np.float32]], headers: Sequence[SliceHeader], encoder: SliceEncoder, index: int | None
) -> NDArray[np.float32]:
    size = encoder.spec.size
    air = np.full((size, size), AIR_HU, np.float32)
    return air if index is None else _resampled(hu[index], headers[index], encoder, size)


def _resampled(hu: NDArray[np.float32], header: SliceHeader, encoder: SliceEncoder, side: int) -> NDArray[np.float32]:
    return windows.resample(hu, header.spacing_mm, field_mm=encoder.spec.field_mm, size=side)


def _views(hu: NDArray[np.float32], shade: NDArray[np.float32] | None) -> dict[str, str]:
    views = read_in_windows(hu)
    if shade is not None:
        views["what the CNN saw"] = overlaid(views["brain"], shade, hu > AROUND_HU)
    return {name: jpeg_uri(picture) for name, picture in views.items()}

"""Pictures of single slices, found by their UID among the files they came in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ich_seq import windows
from ich_seq.config import Slices
from ich_seq.devices import choose_workers
from ich_seq.dicom import SliceHeader
from ich_seq.hounsfield import read_hounsfield
from ich_seq.inputs import Given
from ich_seq.pictures import PICTURE_SIDE, jpeg_uri, read_in_windows
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Refused
from ich_seq.studies import find_studies

FIELD_MM = Slices().field_mm


def find_pictures(root: Given, sop_uids: Collection[str], progress: Progress = silent) -> dict[str, Mapping[str, str]]:
    """Return pictures by SOP Instance UID, each a data URI by window, of those slices that are in `root`.

    Raises UsageError if an input is not there, NothingUsableError if it holds no file; a slice that is not there or
    cannot be read has no picture.
    """
    findings = find_studies(root, workers=choose_workers(None), progress=progress)
    wanted = set(sop_uids)
    headers = [h for study in findings.studies for h in study.slices if h.sop_uid in wanted]
    return {h.sop_uid: views for h in headers if (views := _views(h))}


def _views(header: SliceHeader) -> dict[str, str]:
    try:
        hu = read_hounsfield(header)
    except Refused:
        return {}
    resampled = windows.resample(hu, header.spacing_mm, field_mm=FIELD_MM, size=PICTURE_SIDE)
    return {name: jpeg_uri(picture) for name, picture in read_in_windows(resampled).items()}

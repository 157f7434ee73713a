"""The numbers of a collection, section by section, as JSON values; a section is absent where the input tells nothing.

Where a list stands beside `edges`, its values belong to the ranges between these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.uid import UID

from ich_seq.collection import Collection, Labelling, labelling
from ich_seq.dicom import MIN_BITS, SliceHeader
from ich_seq.hounsfield import DENSEST_HU, QUIRK_MIN_INTERCEPT
from ich_seq.label_statistics import co_occurrence, positives, profile, runs, shares_of_rows, stretches
from ich_seq.labels import LABELS, SUBTYPES
from ich_seq.studies import Study

PROFILE_BINS = 20
TILT_STEP_DEG, SPACING_STEP_MM, PIXEL_STEP_MM = 2.0, 0.5, 0.02
MOST_BARS = 60
MOST_LISTED = 20
"""Different values of a header field; the rarer ones are joined."""

DECIMALS = 6

NO_LABELS = "There are no labels of slices; give them with --labels."
NO_ORDER = "A label file does not tell which slices lie beside which."
NO_SLICES = "A table of studies holds no slices."
NO_HEADERS = "There are no headers of slices in this input."
NO_PIXELS = "A table holds no pixels; give the folder of DICOM files to see slices."

Section = dict[str, Any]


def take_inventory(found: Collection) -> dict[str, Section]:
    """Return the sections that the collection allows, by name, and under `absent` a sentence for each other one."""
    slices = labelling(found)
    sections: dict[str, Section] = {"counts": _counts(found, slices)}
    absent: dict[str, str] = {}
    targets = _labelled_targets(found, slices)
    if targets is not None or found.studies_alone is not None:
        sections["prevalence"] = _prevalence(found, slices, targets)
    else:
        absent["prevalence"] = NO_LABELS
    if targets is not None:
        sections["co_occurrence"] = _co_occurrence(targets)
    else:
        absent["co_occurrence"] = NO_SLICES if found.studies_alone else NO_LABELS
    if slices is not None:
        sections |= {"runs": _runs(slices), "profile": _profile(slices)}
    else:
        absent |= dict.fromkeys(("runs", "profile"), _why_no_order(found))
    if found.studies:
        sections |= {"slices": _slices(found.studies), "geometry": _geometry(found.studies)}
        sections["formats"] = _formats([h for study in found.studies for h in study.slices])
    else:
        absent |= dict.fromkeys(("slices", "geometry", "formats"), NO_HEADERS)
    if found.kind != "dicom":
        absent |= dict.fromkeys(("windows", "montages"), NO_PIXELS)
    return sections | {"absent": absent}


def _why_no_order(found: Collection) -> str:
    return {"labels": NO_ORDER, "studies": NO_SLICES}.get(found.kind, NO_LABELS)


def _labelled_targets(found: Collection, slices: Labelling | None) -> NDArray[np.uint8] | None:
    """Return the labels of all slices that are there and have any, (M, K)."""
    if slices is not None:
        return slices.targets[slices.labelled]
    return None if found.labels is None else found.labels.table.to_numpy(np.uint8)


def _counts(found: Collection, slices: Labelling | None) -> Section:
    """Count what was seen and what became of it; where the input does not tell, a number is None."""
    counts = found.counts
    patients, studies = _patients(found), _n_studies(found)
    several = sum(n > 1 for n in Counter(patients).values())
    labelled = None if slices is None else int(slices.labelled.sum())
    n_slices = counts.used if found.kind == "labels" else sum(len(study.slices) for study in found.studies)
    known = {h.sop_uid for study in found.studies for h in study.slices} if slices is not None else set()
    return {
        "files": counts.files,
        "used": counts.used,
        "excluded": counts.excluded,
        "rejected": counts.rejected,
        "reasons": counts.reasons,
        "slices": None if found.studies_alone else n_slices,
        "studies": studies or None,
        "patients": len(set(patients)) or None,
        "patients_with_several_studies": several if patients else None,
        "labelled_slices": n_slices if found.kind == "labels" else labelled,
        "unlabelled_slices": None if labelled is None else n_slices - labelled,
        "labels_of_no_slice": None
        if slices is None or not found.labels
        else len(set(found.labels.table.index) - known),
        "duplicate_label_rows": found.labels.duplicate_rows if found.labels else None,
    }


def _patients(found: Collection) -> list[str]:
    """Return the patient of each study; empty where the input tells no patients."""
    if found.studies_alone:
        named = dict(zip(found.studies_alone.uids, found.studies_alone.patients, strict=True))
    else:
        named = {s.uid: s.patient_id for s in found.studies}
    known = any(patient != f"study {uid}" for uid, patient in named.items())  # how one without an ID is called
    return list(named.values()) if known else []


def _n_studies(found: Collection) -> int:
    return len(found.studies_alone.uids) if found.studies_alone else len(found.studies)


def _prevalence(found: Collection, slices: Labelling | None, targets: NDArray[np.uint8] | None) -> Section:
    """Return how often each label is there, of slices and of studies, as far as the input tells."""
    levels: Section = {}
    if targets is not None:
        levels["slices"] = _shares(targets)
    if slices is not None:
        seen, of_studies = slices.studies()
        levels["studies"] = _shares(of_studies[seen])
    if found.studies_alone is not None:
        levels["studies"] = _shares(found.studies_alone.targets)
    return levels


def _shares(targets: NDArray[np.uint8]) -> Section:
    return {
        label: {"positive": int(n), "of": len(targets), "share": _share(int(n), len(targets))}
        for label, n in zip(LABELS, positives(targets), strict=True)
    }


def _share(part: float, whole: float) -> float | None:
    return _rounded(part / whole) if whole else None


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DECIMALS)


def _co_occurrence(targets: NDArray[np.uint8]) -> Section:
    """Return of each label how many of its slices have each other one; and of slices, how many subtypes they have."""
    counts = co_occurrence(targets)
    shares = shares_of_rows(counts)
    together = np.bincount(targets[:, : len(SUBTYPES)].sum(axis=1, dtype=np.int64), minlength=len(LABELS))
    return {
        "counts": {a: dict(zip(LABELS, map(int, row), strict=True)) for a, row in zip(LABELS, counts, strict=True)},
        "shares": {
            a: dict(zip(LABELS, map(_rounded, row), strict=True)) for a, row in zip(LABELS, shares, strict=True)
        },
        "subtypes_of_a_slice": {str(n): int(m) for n, m in enumerate(together)},
    }


def _runs(slices: Labelling) -> Section:
    """Return of each label the runs of positive slices along z, and how like neighbours are."""
    stretch, targets = stretches(slices.study, slices.labelled), slices.targets[slices.labelled]
    found = {}
    for k, label in enumerate(LABELS):
        r = runs(targets[:, k] > 0, stretch)
        found[label] = {
            "runs": len(r.lengths),
            "median_length": float(np.median(r.lengths)) if len(r.lengths) else None,
            "longest": int(r.lengths.max(initial=0)),
            "of_one_slice": int((r.lengths == 1).sum()),
            "one_slice_gaps": r.gaps,
            "neighbours": r.neighbours,
            "agreeing": r.agreeing,
            "agreeing_share": _share(r.agreeing, r.neighbours),
            "lengths": {str(n): m for n, m in sorted(Counter(r.lengths.tolist()).items())},
        }
    return found


def _profile(slices: Labelling) -> Section:
    """Return by relative position the labelled slices and which share of them has each label."""
    n, positive = profile(slices.place[slices.labelled], slices.targets[slices.labelled], PROFILE_BINS)
    return {
        "edges": np.linspace(0, 1, PROFILE_BINS + 1).round(DECIMALS).tolist(),
        "slices": n.tolist(),
        "positive": {label: positive[:, k].tolist() for k, label in enumerate(LABELS)},
        "share": {
            label: [_share(p, of) for p, of in zip(positive[:, k].tolist(), n.tolist(), strict=True)]
            for k, label in enumerate(LABELS)
        },
    }


def _slices(studies: Sequence[Study]) -> Section:
    lengths = [len(s.slices) for s in studies]
    told = {"least": min(lengths), "median": float(np.median(lengths)), "most": max(lengths)}
    return told | _histogram(lengths, -(-(max(lengths) - min(lengths) + 1) // MOST_BARS), "studies")


def _geometry(studies: Sequence[Study]) -> Section:
    geometries = [s.geometry for s in studies]
    zones = Counter(g.zones for g in geometries)
    return {
        "zones": {str(k): zones[k] for k in sorted(zones)},
        "studies_with_gaps": sum(g.gaps > 0 for g in geometries),
        "gaps": sum(g.gaps for g in geometries),
        "studies_with_repeated_positions": sum(g.duplicates > 0 for g in geometries),
        "repeated_positions": sum(g.duplicates for g in geometries),
        "studies_tilted_over_1_degree": sum(abs(g.tilt_deg) > 1 for g in geometries),
        "spacing_mm": _histogram([g.spacing_mm for g in geometries], SPACING_STEP_MM, "studies"),
        "largest_step_mm": round(max(g.max_spacing_mm for g in geometries), DECIMALS),
        "tilt_deg": _histogram([g.tilt_deg for g in geometries], TILT_STEP_DEG, "studies"),
    }


def _histogram(values: Sequence[float], step: float, counted: str) -> Section:
    """Count values in bins whose middles are multiples of `step`, an empty one on either side.

    One value far off makes bins wider, not more of them.
    """
    step *= max(1, -(-int((max(values) - min(values)) / step) // MOST_BARS))
    bin_ = np.floor(np.asarray(values) / step + 0.5 + 1e-6).astype(np.int64)  # equal but for rounding, equal bins
    first, last = int(bin_.min()) - 1, int(bin_.max()) + 1
    return {
        "edges": [round(step * (k - 0.5), DECIMALS) for k in range(first, last + 2)],
        counted: np.bincount(bin_ - first, minlength=last - first + 1).tolist(),
    }


def _formats(headers: Sequence[SliceHeader]) -> Section:
    """Count slices by how they are stored; what no header tells is left out."""
    fields = {
        "pixels": (_pixels(h) for h in headers),
        "rescale": (f"slope {h.slope:g}, intercept {h.intercept:g}" if h.slope else "" for h in headers),
        "matrix": (f"{h.rows} x {h.columns}" if h.rows and h.columns else "" for h in headers),
        "transfer_syntax": (UID(h.transfer_syntax).name if h.transfer_syntax else "" for h in headers),
        "scanner": (h.scanner for h in headers),
        "padding": ("" if h.padding is None else f"{h.padding}" for h in headers),
    }
    tables = {name: table for name, values in fields.items() if (table := _most(values))}
    sizes = [h.spacing_mm[0] for h in headers if h.spacing_mm[0]]
    pixels = {"pixel_spacing_mm": _histogram(sizes, PIXEL_STEP_MM, "slices")} if sizes else {}
    return tables | pixels | {"quirks": _quirks(headers)}


def _pixels(h: SliceHeader) -> str:
    return f"{h.bits_stored} bit {'signed' if h.signed else 'unsigned'}" if h.bits_stored else ""


def _most(values: Iterable[Hashable]) -> dict[str, int]:
    """Count values, the commonest first; empty if all are unknown."""
    counts = Counter(str(v) or "(not told)" for v in values)
    if set(counts) <= {"(not told)"}:
        return {}
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in ranked[MOST_LISTED:])
    return dict(ranked[:MOST_LISTED]) | ({f"({len(ranked) - MOST_LISTED} others)": rest} if rest else {})


def _quirks(headers: Sequence[SliceHeader]) -> dict[str, int]:
    """Count slices whose storage has misled readers; a quirk of which the headers tell nothing is left out."""
    told = [h for h in headers if h.bits_stored and h.slope]
    read = [h for h in headers if h.transfer_syntax]  # of files: a table does not tell padding values
    padded = [h for h in read if h.padding is not None]
    scaled = [h for h in headers if h.slope]
    sized = [h for h in headers if h.spacing_mm[0]]
    quirks = {
        "wrapped_12_bit": (told, [h for h in told if _wraps(h)]),
        "signed_with_intercept_0": (told, [h for h in told if h.signed and h.intercept == 0]),
        "slope_not_1": (scaled, [h for h in scaled if h.slope != 1]),
        "padding_value": (read, padded),
        "padding_denser_than_bone": (read, [h for h in padded if _stored_hu(h, h.padding) >= DENSEST_HU]),
        "pixels_not_square": (sized, [h for h in sized if h.spacing_mm[0] != h.spacing_mm[1]]),
        "no_patient_id": (read or [h for h in headers if h.patient_id], [h for h in headers if not h.patient_id]),
    }
    return {name: len(found) for name, (known, found) in quirks.items() if known}


def _wraps(h: SliceHeader) -> bool:
    return h.bits_stored == MIN_BITS and not h.signed and h.intercept > QUIRK_MIN_INTERCEPT


def _stored_hu(h: SliceHeader, stored: int | None) -> float:
    return (stored or 0) * h.slope + h.intercept


def studies_table(found: Collection) -> pd.DataFrame | None:
    """Return a row a study, sorted by UID: its numbered patient, geometry, format and positive slices a label."""
    if found.studies_alone is not None:
        return _studies_alone(found)
    if not found.studies:
        return None
    patients: dict[str, int] = {}
    rows = [
        {
            "study_uid": s.uid,
            "patient": patients.setdefault(s.patient_id, len(patients) + 1),
            "slices": len(s.slices),
            "spacing_mm": round(s.geometry.spacing_mm, DECIMALS),
            "min_spacing_mm": round(s.geometry.min_spacing_mm, DECIMALS),
            "max_spacing_mm": round(s.geometry.max_spacing_mm, DECIMALS),
            "extent_mm": round(float(s.positions_mm[-1] - s.positions_mm[0]), DECIMALS),
            "zones": s.geometry.zones,
            "gaps": s.geometry.gaps,
            "duplicates": s.geometry.duplicates,
            "tilt_deg": round(s.geometry.tilt_deg, DECIMALS),
        }
        | _first_format(s)
        for s in found.studies
    ]
    table = pd.DataFrame(rows)
    slices = labelling(found)
    if slices is not None:
        positive = np.zeros((slices.n_studies, len(LABELS)), np.int64)
        np.add.at(positive, slices.study, slices.targets)
        table["labelled_slices"] = np.bincount(slices.study[slices.labelled], minlength=slices.n_studies)
        table[list(LABELS)] = positive
    return table


def _first_format(study: Study) -> Section:
    """Return how slices of a study are stored, by most or by its first; what the input does not tell is empty."""
    (rows, columns), first = study.matrix, study.slices[0]
    return {
        "rows": rows or None,
        "columns": columns or None,
        "pixel_spacing_mm": first.spacing_mm[0] or None,
        "pixels": _pixels(first) or None,
        "scanner": study.scanner or None,
    }


def _studies_alone(found: Collection) -> pd.DataFrame:
    assert found.studies_alone is not None
    patients: dict[str, int] = {}
    table = pd.DataFrame(found.studies_alone.targets, columns=list(LABELS))
    table.insert(0, "study_uid", found.studies_alone.uids)
    table.insert(1, "patient", [patients.setdefault(p, len(patients) + 1) for p in found.studies_alone.patients])
    return table


def flat(sections: Mapping[str, Any]) -> pd.DataFrame:
    """Return every number of the sections as a row: section, name, label, value."""
    rows = [
        {"section": section, "name": "/".join(name), "label": label, "value": value}
        for section, values in sections.items()
        if section != "absent"
        for name, label, value in _leaves(values, (), "")
    ]
    return pd.DataFrame(rows, columns=["section", "name", "label", "value"])


def _leaves(values: Mapping[str, Any], path: tuple[str, ...], label: str) -> Iterable[tuple[tuple[str, ...], str, Any]]:
    """Yield path, label and value of every number; the first key that is a label's name is the label."""
    edges = values.get("edges")
    for key, value in values.items():
        is_label = key in LABELS and not label
        here, named = (path, key) if is_label else ((*path, key), label)
        if isinstance(value, Mapping):
            inner = dict(value) | ({"edges": edges} if edges else {})
            yield from _leaves(inner, here, named)
        elif isinstance(value, list) and key != "edges":
            for low, high, item in zip(edges[:-1], edges[1:], value, strict=True):  # type: ignore[index]
                yield (*here, f"{low:g} to {high:g}"), named, item
        elif key != "edges" and isinstance(value, int | float):
            yield here, named, value

"""exploration.html: the numbers of a collection as tables and charts, and its pictures, with a word on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ich_seq.charts import bars, chart, histogram, lines
from ich_seq.gallery import HISTOGRAM_HU, MIDDLE, NONE, SENTENCES, TISSUES_HU, Gallery, Montage, histogram_edges_hu
from ich_seq.labels import LABELS
from ich_seq.pages import count, number, percent, render
from ich_seq.pictures import data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = "exploration.html"
LONGEST_SHOWN = 20
"""Runs longer than this, in slices, are in the JSON only."""

LONGEST_NAME = 30
"""Letters of a row's name that stays on one line."""

HEADROOM = 1.35
"""Of a histogram's height, so that the names of tissues stand above the curves."""

TISSUE_SHADES = ("#56b4e9", "#bbbbbb", "#777777", "#d55e00")
"""Of TISSUES_HU; not the labels' colours."""

KINDS = {
    "dicom": ("files", "A folder of DICOM files"),
    "slices": ("rows", "A table of slices, without pixels"),
    "labels": ("slices", "A label file, without headers and pixels"),
    "studies": ("rows", "A table of studies, without slices"),
}
"""What is counted in each kind of input, and what it is."""

FATES = {"used": "used", "excluded": "excluded", "rejected": "rejected", "files": "all"}

COUNTED = {
    "slices": "slices",
    "studies": "studies",
    "patients": "patients",
    "patients_with_several_studies": "patients with several studies",
    "labelled_slices": "slices with labels",
    "unlabelled_slices": "slices without labels",
    "labels_of_no_slice": "labels of slices that are not here",
    "duplicate_label_rows": "label rows that only repeat another",
}

GEOMETRY = {
    "studies_with_gaps": "studies with gaps",
    "gaps": "gaps, all in all",
    "studies_with_repeated_positions": "studies with repeated positions",
    "repeated_positions": "slices that repeat a position",
    "studies_tilted_over_1_degree": "studies tilted by more than a degree",
}

FIELDS = {
    "pixels": "Stored bits",
    "rescale": "Rescale slope and intercept",
    "matrix": "Matrix, rows x columns",
    "transfer_syntax": "Transfer syntax",
    "scanner": "Scanner",
    "padding": "Pixel padding value",
}

QUIRKS = {
    "wrapped_12_bit": "12 bit unsigned with an intercept above -100: wrapped below zero, mended on reading",
    "signed_with_intercept_0": "signed with intercept 0: stored as HU already, to be left alone",
    "slope_not_1": "slope other than 1",
    "padding_value": "a padding value is declared",
    "padding_denser_than_bone": "padding denser than bone: would be the brightest tissue, read as air",
    "pixels_not_square": "pixels not square",
    "no_patient_id": "no patient ID: the study counts as a patient",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of texts; the first of each row names it."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def wordy(self) -> bool:
        """Return whether the names of rows are sentences, to be broken into lines."""
        return any(len(row[0]) > LONGEST_NAME for row in self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A chart, or a picture as a data URI with its alternative text."""

    caption: str
    chart: Markup | None = None
    uri: str = ""
    alt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A section of the page: what it teaches and shows, figures in groups, or in one sentence why it is `absent`."""

    key: str
    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Sequence[Figure]] = ()
    absent: str = ""

    @property
    def narrow(self) -> bool:
        """Return whether all tables are narrow enough to stand side by side."""
        return all(len(table.heads) == 2 for table in self.tables)


def page(exploration: Mapping[str, Any], gallery: Gallery | None) -> bytes:
    """Return the page of an exploration, the JSON's values, and of what the gallery holds."""
    noun, what = KINDS[exploration["source"]["kind"]]
    parts = [
        _part(exploration, "counts", "What is there", lambda s: _counts(s, noun)),
        _part(exploration, "prevalence", "Label prevalence", _prevalence),
        _part(exploration, "co_occurrence", "Labels that occur together", _co_occurrence),
        _part(exploration, "slices", "Slices of a study", _slices),
        _part(exploration, "runs", "Runs along z", _runs),
        _part(exploration, "profile", "Where in the head", _profile),
        _part(exploration, "geometry", "Geometry", _geometry),
        _part(exploration, "formats", "How slices are stored", _formats),
        *_pictures(exploration["absent"], gallery),
    ]
    return render(TEMPLATE, lead=f"{what}.", parts=parts)


def _part(told: Mapping[str, Any], key: str, title: str, fill: Callable[[Any], dict[str, Any]]) -> Part:
    if key in told["absent"]:
        return Part(key=key, title=title, absent=told["absent"][key])
    return Part(key=key, title=title, **fill(told[key]))


def _counts(told: Mapping[str, Any], noun: str) -> dict[str, Any]:
    seen = [(name, count(told[key])) for key, name in FATES.items()]
    why = [(reason, count(n)) for reason, n in told["reasons"].items()]
    here = [(word, count(told[name])) for name, word in COUNTED.items() if told[name] is not None]
    return {
        "text": f"Each of the {count(told['files'])} {noun} is used, excluded by a rule, or rejected because something "
        "is wrong with it; rejected.csv names those that are not used. A patient with several studies must not be in "
        "training and validation at once.",
        "tables": [
            Table(caption=f"What became of the {noun}", heads=("fate", noun), rows=seen),
            *([Table(caption="Why some are not used", heads=("reason", noun), rows=why)] if why else []),
            Table(caption="What is there", heads=("of what", "number"), rows=here),
        ],
    }


def _prevalence(told: Mapping[str, Any]) -> dict[str, Any]:
    heads = ["label", *(f"{level}{word}" for level in told for word in (", positive", ", of", ", share"))]
    rows = [[label, *(cell for level in told for cell in _prevalence_cells(told[level][label]))] for label in LABELS]
    figures = [
        _drawn(
            f"Share of {level} with each label",
            bars({label: 100 * (told[level][label]["share"] or 0) for label in LABELS}, x=f"% of {level}"),
            "",
        )
        for level in told
    ]
    text = (
        "How often each label is there. A study has a label if any of its slices has. A guess that always says these "
        "shares is the least that a network must beat; the rarer a label, the more easily a network neglects it."
    )
    return {
        "text": text,
        "tables": [Table(caption="Positive slices and studies", heads=heads, rows=rows)],
        "figures": [figures],
    }


def _prevalence_cells(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    return count(figures["positive"]), count(figures["of"]), percent(figures["share"])


def _co_occurrence(told: Mapping[str, Any]) -> dict[str, Any]:
    heads = ["of slices with", *LABELS]
    return {
        "text": "Bleeds come together: blood breaks from the brain into the ventricles, and a blow bleeds in several "
        "places. The labels are therefore six yes-or-no questions, not one choice of six.",
        "tables": [
            Table(
                caption="Slices that have both labels",
                heads=heads,
                rows=[[a, *(count(told["counts"][a][b]) for b in LABELS)] for a in LABELS],
            ),
            Table(
                caption="Share of the row's slices that have the column's label, too",
                heads=heads,
                rows=[[a, *(percent(told["shares"][a][b]) for b in LABELS)] for a in LABELS],
            ),
            Table(
                caption="Slices by their number of subtypes",
                heads=("subtypes", "slices"),
                rows=[(n, count(m)) for n, m in told["subtypes_of_a_slice"].items()],
            ),
        ],
    }


def _slices(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": f"A study has {told['least']} to {told['most']} slices, half of them up to "
        f"{number(told['median'], 0)}. Sequences of different length are padded in a batch, and what reads them must "
        "not see the padding.",
        "figures": [[_drawn("Slices of a study", _whole_numbers(_of(told, "studies", "slices")), "")]],
    }


def _runs(told: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            label,
            count(r["runs"]),
            number(r["median_length"], 1),
            count(r["longest"]),
            count(r["of_one_slice"]),
            count(r["one_slice_gaps"]),
            percent(r["agreeing_share"]),
        ]
        for label, r in told.items()
    ]
    reach = list(range(1, LONGEST_SHOWN + 1))
    curves = {label: (reach, _at_least(r["lengths"], reach)) for label, r in told.items() if r["runs"]}
    draw, caption = lines(curves, x="slices", y="% of runs"), "How many of the runs are at least so long."
    heads = ("label", "runs", "median length", "longest", "of one slice", "one-slice gaps", "neighbours that agree")
    return {
        "text": "A bleed is a body: its slices stand in a row. So the slices beside one tell much of it, which is what "
        "a sequence model learns. A single negative slice between two positive ones is mostly a slip of the label.",
        "tables": [Table(caption="Runs of positive slices along z", heads=heads, rows=rows)],
        "figures": [[_drawn("Length of runs", _whole_numbers(draw), caption)]] if curves else [],
    }


def _at_least(lengths: Mapping[str, int], reach: Iterable[int]) -> list[float]:
    whole = sum(lengths.values())
    return [100 * sum(n for length, n in lengths.items() if int(length) >= least) / whole for least in reach]


def _profile(told: Mapping[str, Any]) -> dict[str, Any]:
    edges, shares = told["edges"], told["share"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    curves = {
        label: (middles, [100 * share if share is not None else np.nan for share in shares[label]]) for label in LABELS
    }
    draw = lines(curves, x="place in the study, feet 0 to head 1", y="% of slices")
    return {
        "text": "How often a slice has each label, by where it lies between the first slice of its study and the last. "
        "Position alone tells much; a figure of merit must be held against that of the position.",
        "figures": [[_drawn("Prevalence along z", draw, f"In {len(middles)} bins.")]],
    }


def _geometry(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": "Slices are ordered by their position along the normal, never by name or number. Many studies change "
        "their step (zones: thin at the skull base), the gantry may be tilted, slices may be missing (gaps) or scanned "
        "twice (repeated positions). So index is not position, and a model is given millimetres.",
        "tables": [
            Table(caption="Stretches of constant step", heads=("zones", "studies"), rows=_counted(told["zones"])),
            Table(
                caption="Irregularities",
                heads=("what", "number"),
                rows=[
                    *((word, count(told[name])) for name, word in GEOMETRY.items()),
                    ("longest step, mm", number(told["largest_step_mm"], 1)),
                ],
            ),
        ],
        "figures": [
            [
                _drawn("Distance of slices, median of a study", _of(told["spacing_mm"], "studies", "mm"), ""),
                _drawn(
                    "Gantry tilt", _of(told["tilt_deg"], "studies", "degrees"), "Turn about the axis from ear to ear."
                ),
            ]
        ],
    }


def _formats(told: Mapping[str, Any]) -> dict[str, Any]:
    tables = [
        Table(caption=word, heads=("value", "slices"), rows=_counted(told[name]))
        for name, word in FIELDS.items()
        if name in told
    ]
    quirks = [(word, count(told["quirks"][name])) for name, word in QUIRKS.items() if name in told["quirks"]]
    spacing = told.get("pixel_spacing_mm")
    return {
        "text": "Stored numbers become Hounsfield units by each slice's own slope and intercept. Matrix and pixel size "
        "differ too: a network should see millimetres, not pixels.",
        "tables": [*tables, Table(caption="Quirks", heads=("what", "slices"), rows=quirks)],
        "figures": [[_drawn("Pixel size", _of(spacing, "slices", "mm"), "")]] if spacing else [],
    }


def _of(told: Mapping[str, Any], counted: str, unit: str) -> Callable[[Axes], None]:
    return histogram(told["edges"], told[counted], x=unit, y=counted)


def _whole_numbers(draw: Callable[[Axes], None]) -> Callable[[Axes], None]:
    """Return what draws the same with whole numbers only below it."""

    def drawn(axes: Axes) -> None:
        draw(axes)
        axes.locator_params(axis="x", integer=True)

    return drawn


def _counted(table: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(value, count(n)) for value, n in table.items()]


def _pictures(absent: Mapping[str, str], gallery: Gallery | None) -> list[Part]:
    """Return the two sections of pictures."""
    windows, montages = "One slice, six windows", "Slices of each kind"
    if gallery is None:
        return [
            Part(key="windows", title=windows, absent=absent["windows"]),
            Part(key="montages", title=montages, absent=absent["montages"]),
        ]
    seen = [_window_figure(name, data_uri(picture)) for name, picture in gallery.windows.items()]
    none = next((m for m in gallery.montages if m.name == NONE), None)
    return [
        Part(
            key="windows",
            title=windows,
            text=f"A window shows some Hounsfield units and cuts off the rest. The slice is of study "
            f"{gallery.study_uid}.",
            figures=[seen],
        ),
        Part(
            key="montages",
            title=montages,
            text="Slices of different studies, the middle ones of those that have the label, beside how often each "
            "Hounsfield unit occurs in them. The bands are where tissues usually lie; noise and partial volume spread "
            "each far beyond.",
            figures=[_montage_figures(m, none) for m in gallery.montages],
        ),
    ]


def _window_figure(name: str, uri: str) -> Figure:
    return Figure(uri=uri, alt=f"The slice through the window: {name}", caption=f"{name}: {SENTENCES[name]}")


def _montage_figures(montage: Montage, none: Montage | None) -> tuple[Figure, Figure]:
    title = {NONE: "no haemorrhage", MIDDLE: "middle slices"}.get(montage.name, montage.name)
    studies = ", ".join(montage.study_uids)
    shown = f"{len(montage.study_uids)} slices, {montage.window} window: {title}"
    curves = {title: montage.shares} | ({"no haemorrhage": none.shares} if none is not None else {})
    caption = "Share of all pixels, in bins of 2 HU. Bands: " + ", ".join(
        f"{tissue} {low:g} to {high:g}" for tissue, (low, high) in TISSUES_HU.items()
    )
    return (
        Figure(uri=data_uri(montage.picture), alt=shown, caption=f"{shown}. Studies {studies}"),
        _drawn(f"Hounsfield units: {title}", _tissues(curves), caption),
    )


def _tissues(curves: Mapping[str, Any]) -> Callable[[Axes], None]:
    """Return what draws shares of pixels over HU on bands of the tissues."""
    edges = histogram_edges_hu()
    middles = (edges[:-1] + edges[1:]) / 2
    draw_lines = lines(
        {name: (middles.tolist(), (100 * shares).tolist()) for name, shares in curves.items()},
        x="HU",
        y="% of pixels",
    )

    def draw(axes: Axes) -> None:
        for (tissue, (low, high)), shade in zip(TISSUES_HU.items(), TISSUE_SHADES, strict=True):
            axes.axvspan(low, high, color=shade, alpha=0.3, linewidth=0)
            axes.text(
                (low + high) / 2, 0.98, tissue, rotation=90, ha="center", va="top", fontsize=7,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        draw_lines(axes)
        axes.set(xlim=HISTOGRAM_HU, ylim=(0, HEADROOM * axes.get_ylim()[1]))
        if len(curves) > 1:
            axes.legend(fontsize=8, loc="upper left")

    return draw


def _drawn(title: str, draw: Callable[[Axes], None], caption: str) -> Figure:
    return Figure(chart=chart(title, draw), caption=caption)

"""The pages of a prediction: all links lead somewhere, every number is there as text, and no text does anything."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq import OutputError, study_pages, windows
from ich_seq.bundle import Bundle, Calibrations
from ich_seq.calibration import Calibration
from ich_seq.config import Config
from ich_seq.encoder import build_encoder, with_head
from ich_seq.engines import Embedder
from ich_seq.extraction import read_study
from ich_seq.figures import Predicted
from ich_seq.highlights import KEY_APART, KEY_SLICES, flags, key_slices
from ich_seq.labels import LABELS
from ich_seq.novelty import STRANGE, Familiar
from ich_seq.report import StudyPrediction, StudyResult, said_of_study
from ich_seq.studies import Counts, Geometry, Study, find_studies
from ich_seq.study_pages import StudyPages, study_page

pytest_plugins = ["browser"]

K = len(LABELS)
ANY = LABELS.index("any")
CPU = torch.device("cpu")
SOUND = Geometry(
    spacing_mm=5.0, min_spacing_mm=5.0, max_spacing_mm=5.0, zones=1, gaps=0, duplicates=0, tilt_deg=0.0
)  # fmt: skip
COUNTS = Counts(files=1234, used=1230, excluded=3, rejected=1, reasons={"localizer": 3, "not_dicom": 1})
CARD = {"intended_use": "To be looked at.", "training": {"studies": 4321, "patients": 1111}}
SCRIPT, PICTURE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
PLANTED = [SCRIPT, PICTURE]


class Page(HTMLParser):
    """What a page holds: links, ids, pictures, lines of charts, facts and tables, cell by cell."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.tags, self.pictures, self.lines, self.views = [], [], [], [], [], []
        self.tables, self.facts, self._open, self._term = [], {}, [], ""
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        named = dict(attrs)
        self.tags.append(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.pictures += [(named["alt"], named["src"])] if tag == "img" else []
        self.views += [named["viewbox"]] if tag == "svg" else []
        self.lines += [named["points"]] if tag == "polyline" else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th", "dt", "dd"):
            self._open.append("")

    def handle_endtag(self, tag):
        """Keep the text of a cell, a term or a fact."""
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._open.pop())
        elif tag == "dt":
            self._term = self._open.pop()
        elif tag == "dd":
            self.facts[self._term] = self._open.pop()

    def handle_data(self, data):
        """Note text."""
        self.text += data
        if self._open:
            self._open[-1] += data

    def table(self, column):
        """Return the rows, less the heading, of the table that has this column."""
        ((_, *rows),) = [rows for rows in self.tables if column in rows[0]]
        return rows

    def points(self):
        """Return the points of each line, (N, 2)."""
        return [np.array([point.split(",") for point in line.split()], float) for line in self.lines]


@pytest.fixture(scope="module")
def bundle(headed_encoders, execution):
    """A bundle of two encoders; of the rest a page shows only the card."""
    one, none = np.ones(K), np.zeros(K)
    calibration = Calibration(share=none, slope=one, intercept=none)
    usual = np.ones((2, headed_encoders[0].spec.dim), np.float32)
    return Bundle(
        embedders={k: Embedder(encoder, execution, CPU) for k, encoder in enumerate(headed_encoders)},
        models=(),
        calibrations=Calibrations(slices=calibration, studies=calibration),
        familiar=Familiar(usual, usual, usual[:, None], 1.0),
        card=CARD,
        card_sha256="0123456789abcdef" * 4,
        name="mine",
    )


@pytest.fixture(scope="module")
def scan(write_slice, tmp_path_factory):
    """Write a study of N slices, 5 mm apart; slice i is i HU unless told, the first file lies at the head."""

    def scan(slices, uid="1.2.3.4", sop="{}.{}", stored=None, **tags):
        folder = tmp_path_factory.mktemp("dicom")
        for i in range(slices):
            write_slice(
                folder / f"{slices - i}.dcm",
                stored=np.full((16, 16), 1024 + i) if stored is None else stored,
                PixelSpacing=[5, 5],
                ImagePositionPatient=[-40, -40, 5 * i - 60],
                StudyInstanceUID=uid,
                SOPInstanceUID=sop.format(uid, i),
                **tags,
            )
        (study,) = find_studies(folder).studies
        return study

    return scan


@pytest.fixture(scope="module")
def twelve(scan):
    """A study of twelve slices."""
    return scan(12, Manufacturer="GE", ManufacturerModelName="LightSpeed")


@pytest.fixture
def pages(bundle, tmp_path):
    """The pages' writer, begun."""
    writer = StudyPages(tmp_path, bundle)
    writer.clear()
    return writer


def said_of(study: Study, *, seed: int = 0, likeliest: float | None = None, **changes) -> StudyPrediction:
    """A prediction of a study, every probability another; `likeliest` is that of any haemorrhage."""
    rng, n = np.random.default_rng(seed), len(study.slices)
    beside = {
        name: Predicted(slices=rng.uniform(size=(n, K)), studies=rng.uniform(size=(1, K)))
        for name in ("cnn", "rnn", "blend")
    }
    if likeliest is not None:
        beside["blend"].studies[0, ANY] = likeliest
    usual = {
        "study_uid": study.uid,
        "patient": 17,
        "patient_id": None,
        "matrix": study.matrix,
        "scanner": study.scanner,
        "slices": n,
        "span_mm": float(study.positions_mm[-1] - study.positions_mm[0]),
        "said": said_of_study(beside),
        "geometry": SOUND,
        "lost_slices": 0,
        "novelty": 0.5,
    }
    return StudyPrediction(
        result=StudyResult(**usual | changes),
        sop_uids=tuple(h.sop_uid for h in study.slices),
        positions_mm=study.positions_mm,
        beside=beside,
    )


def with_slices(study: Study, probabilities) -> StudyPrediction:
    """A prediction whose slices bleed with these probabilities, (N,)."""
    said = said_of(study)
    said.slice_probabilities[:, ANY] = probabilities
    return said


def without_files(study: Study) -> Study:
    """The study, its files no longer there."""
    return replace(study, slices=tuple(replace(h, path=h.path.with_suffix(".gone")) for h in study.slices))


def written(pages: StudyPages, study: Study, said: StudyPrediction) -> Path:
    """Write the page of a study; return its path."""
    pages.write_study(study, said)
    return pages.out / study_page(said.result.study_uid)


def many(pages: StudyPages, study: Study, likeliest) -> list[StudyPrediction]:
    """Write pages of as many studies as probabilities are given, and the worklist of all."""
    said = [said_of(replace(study, uid=f"1.2.{i}"), seed=i, likeliest=p) for i, p in enumerate(likeliest)]
    for one in said:
        pages.write_study(without_files(study), one)
    pages.write_worklist([one.result for one in said], COUNTS)
    return said


# Key slices


def by_hand(probabilities, most, apart):
    """Take the likeliest slice that is far enough from those taken, the lowest of equal ones, as often as there is."""
    taken = []
    for _ in range(most):
        best = None
        for i, p in enumerate(probabilities):
            near = any(abs(i - j) < apart for j in taken)
            if not near and (best is None or p > probabilities[best]):
                best = i
        if best is not None:
            taken.append(best)
    return sorted(taken)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]) | st.floats(0, 1), min_size=1, max_size=40))
def test_key_slices_are_those_that_a_plain_loop_takes(probabilities):
    """Also among equal probabilities, and where a study has too few slices."""
    assert key_slices(np.array(probabilities)) == by_hand(probabilities, KEY_SLICES, KEY_APART)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_key_slices_are_few_apart_and_likely(probabilities):
    """Ascending, no neighbours, the likeliest of all among them; none left out is likelier, but beside a likelier."""
    chosen = key_slices(np.array(probabilities))
    assert 1 <= len(chosen) <= KEY_SLICES
    assert all(b - a >= KEY_APART for a, b in pairwise(chosen))
    assert max(probabilities) in [probabilities[i] for i in chosen]
    for i, p in enumerate(probabilities):
        beside = [probabilities[j] for j in chosen if abs(i - j) < KEY_APART]
        full = len(chosen) == KEY_SLICES and min(probabilities[j] for j in chosen) >= p
        assert full or max(beside, default=-1) >= p


def test_a_broad_bleeding_is_not_shown_three_times_over():
    """Of five likely neighbours two are taken, and then what stands alone."""
    assert key_slices(np.array([0.1, 0.7, 0.8, 0.9, 0.8, 0.7, 0.1, 0.1, 0.3])) == [1, 3, 5]
    assert key_slices(np.array([0.1, 0.8, 0.9, 0.8, 0.2, 0.1, 0.1, 0.3, 0.1])) == [2, 4, 7]


# Flags


def flagged(geometry=None, slices=30, step_mm=5.0, **changes) -> tuple[str, ...]:
    """The flags of a study without fault, but for some things."""
    result = StudyResult(
        study_uid="1.2", patient=1, patient_id=None, matrix=(512, 512), scanner="", slices=slices,
        span_mm=step_mm * (slices - 1), said=np.zeros((3, K)), geometry=replace(SOUND, **geometry or {}),
        **{"lost_slices": 0, "novelty": 0.5} | changes,
    )  # fmt: skip
    return flags(result)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"novelty": STRANGE}, "unlike the training data"),
        ({"lost_slices": 2}, "slices lost: 2"),
        ({"geometry": {"gaps": 3}}, "gaps: 3"),
        ({"geometry": {"duplicates": 4}}, "repeated positions: 4"),
        ({"geometry": {"tilt_deg": 10.0}}, "gantry tilt 10°"),
        ({"geometry": {"tilt_deg": -17.6}}, "gantry tilt -18°"),
        ({"geometry": {"zones": 2}}, "spacing changes"),
        ({"geometry": {"spacing_mm": 7.6}}, "thick steps: 7.6 mm"),
        ({"slices": 9}, "few slices: 9"),
        ({"slices": 9, "step_mm": 20}, "few slices: 9"),
        ({"slices": 20, "step_mm": 5.2}, "covers 99 mm"),
    ],
)
def test_each_flag_is_raised_alone(changes, expected):
    """What is off by itself raises its own flag, with its number, and no other."""
    (flag,) = flagged(**changes)
    assert flag.startswith(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"novelty": STRANGE - 1e-6},
        {"geometry": {"tilt_deg": 9.99}},
        {"geometry": {"tilt_deg": -9.99}},
        {"geometry": {"spacing_mm": 7.5}},
        {"slices": 11, "step_mm": 10},
    ],
)
def test_what_just_is_not_off_raises_none(changes):
    """A study at the last good value of each has no flag."""
    assert flagged(**changes) == ()


def test_all_flags_can_be_raised_at_once(pages, twelve):
    """None hides another, and both the study's page and the worklist show them."""
    off = replace(SOUND, gaps=1, duplicates=2, tilt_deg=20.0, zones=3, spacing_mm=9.0)
    said = said_of(twelve, geometry=off, lost_slices=5, novelty=2.0)
    raised = flags(said.result)
    assert len(raised) == 8
    page = Page(written(pages, without_files(twelve), said))
    pages.write_worklist([said.result], COUNTS)
    worklist = Page(pages.out / "report.html")
    assert all(flag in page.text for flag in raised)
    assert worklist.table("study")[0][4] == "".join(raised)


# Links and folders


def assert_links_lead_somewhere(folder: Path) -> int:
    """Assert that every link of every page leads to a file that is there, or to a place of a page; count them."""
    links = 0
    for path in [folder / "report.html", *(folder / "report").iterdir()]:
        page = Page(path)
        for link in page.links:
            target, _, place = link.partition("#")
            assert (path.parent / target).is_file() if target else place in page.ids, f"{link} of {path}"
        links += len(page.links)
    return links


def test_every_link_leads_somewhere(pages, twelve):
    """From the worklist to the studies and back, and within a page; each page can be come to."""
    said = many(pages, twelve, [0.1, 0.9])
    assert assert_links_lead_somewhere(pages.out) >= 2 + 2 + 2 * 6
    linked = {link for link in Page(pages.out / "report.html").links if not link.startswith("#")}
    assert linked == {study_page(one.result.study_uid) for one in said}
    for one in said:
        assert "../report.html" in Page(pages.out / study_page(one.result.study_uid)).links


@pytest.mark.parametrize("studies", [1, 3, 4, 8])
def test_a_long_worklist_goes_on_on_other_pages(pages, twelve, monkeypatch, studies):
    """Each study is on exactly one page, numbered through by falling probability; every page leads to all others."""
    monkeypatch.setattr(study_pages, "ROWS_A_PAGE", 3)
    likeliest = np.random.default_rng(3).permutation(studies) / 10
    said = many(pages, twelve, likeliest)
    count = -(-studies // 3)
    paths = [pages.out / "report.html", *(pages.out / "report" / f"worklist-{i}.html" for i in range(2, count + 1))]
    assert {p.name for p in (pages.out / "report").glob("worklist*")} == {p.name for p in paths[1:]}
    read = [Page(path) for path in paths]
    rows = [row for page in read for row in page.table("study")]
    assert [len(page.table("study")) for page in read[:-1]] == [3] * (count - 1)
    assert [row[0] for row in rows] == [str(i + 1) for i in range(studies)]
    expected = sorted(said, key=lambda one: -one.result.probabilities[ANY])
    assert [row[1] for row in rows] == [one.result.study_uid for one in expected]
    assert [float(row[2]) for row in rows] == pytest.approx([one.result.probabilities[ANY] for one in expected])
    for path, page in zip(paths, read, strict=True):
        others = {(path.parent / link).resolve() for link in page.links if "worklist" in link or "report.html" in link}
        assert others == {other.resolve() for other in paths if other != path}
    assert_links_lead_somewhere(pages.out)


def test_studies_equally_likely_are_ordered_by_uid(pages, twelve):
    """The order of finding, which is the disk's, decides nothing."""
    said = [said_of(replace(twelve, uid=f"1.2.{i}"), likeliest=0.5).result for i in (3, 1, 2)]
    pages.write_worklist(said, COUNTS)
    first = (pages.out / "report.html").read_bytes()
    assert [row[1] for row in Page(pages.out / "report.html").table("study")] == ["1.2.1", "1.2.2", "1.2.3"]
    pages.write_worklist(said[::-1], COUNTS)
    assert (pages.out / "report.html").read_bytes() == first


def test_a_link_in_the_place_of_the_pages_is_refused(pages, tmp_path):
    """What lies behind it is somebody's."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "0123456789abcdef.html").write_text("theirs")
    (pages.out / "report").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="is a link"):
        pages.clear()
    assert (tmp_path / "theirs" / "0123456789abcdef.html").read_text() == "theirs"


def test_an_older_run_s_pages_go_and_what_is_not_ours_stays(pages, twelve, monkeypatch):
    """A study that is no longer there has no page any more; a file or folder that somebody else put there is kept."""
    monkeypatch.setattr(study_pages, "ROWS_A_PAGE", 1)
    many(pages, twelve, [0.1, 0.2, 0.3])
    folder = pages.out / "report"
    ours = {path.name for path in folder.iterdir()}
    assert len(ours) == 3 + 2
    mine = {
        "notes.html",
        "0123456789abcdef.html.bak",
        "worklist-x.html",
        "0123456789ABCDEF.html",
        "x0123456789abcdef.html",
    }
    for name in mine:
        (folder / name).write_text("mine")
    (folder / "folder").mkdir()
    pages.clear()
    assert {path.name for path in folder.iterdir()} == mine | {"folder"}
    assert all((folder / name).read_text() == "mine" for name in mine)
    assert not (pages.out / "report.html").exists()
    many(pages, twelve, [0.1])
    assert {path.name for path in folder.iterdir()} - mine - {"folder"} == {Path(study_page("1.2.0")).name}


@pytest.mark.parametrize(
    "uid", ["1.2.840.113619.2", "../../../etc/passwd", "a/b", ".", "", "x" * 64, "Doe^John", *PLANTED]
)
def test_a_page_is_named_by_a_hash_and_never_by_the_uid(pages, twelve, uid):
    """Whatever the UID, the page lies in the folder, under 16 hex digits, and UIDs do not share one."""
    path = written(pages, without_files(twelve), said_of(twelve, study_uid=uid))
    assert re.fullmatch(r"[0-9a-f]{16}\.html", path.name)
    assert [other for other in pages.out.rglob("*") if other.is_file()] == [path]
    assert path.parent == pages.out / "report"
    assert study_page(uid) != study_page(uid + "1")


# What a page of a study says


def test_the_page_holds_every_probability_as_text(pages, twelve):
    """Label by label those of CNN, RNN and blend for the study, and the blend's for every slice, feet to head."""
    said = said_of(twelve)
    page = Page(written(pages, twelve, said))
    for row, label, *numbers in zip(
        page.table("CNN"), LABELS, *(said.beside[name].studies[0] for name in ("blend", "cnn", "rnn")), strict=True
    ):
        assert row == [label, *(f"{number:.3f}" for number in numbers)]
    assert f"Any haemorrhage: {said.result.probabilities[ANY]:.3f}" in page.text
    rows = page.table("SOP Instance UID")
    assert len(rows) == 12
    for i, row in enumerate(rows):
        numbers = [f"{p:.3f}" for p in said.slice_probabilities[i]]
        assert row == [str(i + 1), f"{said.positions_mm[i]:.1f}", *numbers, said.sop_uids[i]]


def test_the_page_tells_what_study_it_is(pages, twelve):
    """UID, number of the patient, slices, matrix and scanner stand among the facts, and no Patient ID."""
    said = said_of(twelve, lost_slices=3, geometry=replace(SOUND, tilt_deg=-12.34), novelty=0.777)
    facts = Page(written(pages, twelve, said)).facts
    assert facts["Study Instance UID"] == "1.2.3.4"
    assert facts["patient of this run"] == "17"
    assert facts["slices"] == "12 used, 3 lost"
    assert facts["matrix"] == "16 x 16"
    assert facts["scanner"] == "GE LightSpeed"
    assert facts["gantry tilt"].startswith("-12.3")
    assert facts["novelty"].startswith("0.78")
    assert "Patient ID" not in facts


def test_a_patient_id_that_was_asked_for_is_shown(pages, twelve):
    """It stands among the facts, and only there."""
    page = Page(written(pages, twelve, said_of(twelve, patient_id="CQ500-CT-42")))
    assert page.facts["Patient ID"] == "CQ500-CT-42"
    assert page.text.count("CQ500-CT-42") == 1


@pytest.mark.parametrize("few", [{}, {"epidural": 1, "subdural": 3}, {"epidural": 1, "subdural": 3, "any": 7}])
def test_both_pages_mark_the_labels_that_are_hardly_learnt(pages, twelve, bundle, few):
    """By a dagger, and below the table is told how few studies taught them; nothing of it where there are none."""
    counts = {"positive_studies": dict.fromkeys(LABELS, 40) | few}
    marking = StudyPages(pages.out, replace(bundle, card=CARD | {"training": CARD["training"] | counts}))
    (said,) = many(marking, twelve, [0.5])
    marking.write_study(twelve, said)
    for path in (pages.out / "report.html", pages.out / study_page(said.result.study_uid)):
        page = path.read_text()
        assert [label for label in LABELS if f">{label} †<" in page] == list(few)
        assert ("1 study with epidural, 3 studies with subdural" in page) == ("†" in page) == bool(few)


def test_the_worklist_tells_what_was_read_and_what_read_it(pages, twelve):
    """Files by their fate and reason, studies, the bundle's intended use, training and hash."""
    said = said_of(twelve)
    pages.write_worklist([said.result], COUNTS)
    page = Page(pages.out / "report.html")
    assert page.text.count("1,234 files") == 1
    assert page.table("reason") == [["localizer", "3"], ["not_dicom", "1"]]
    assert CARD["intended_use"] in page.text
    assert page.facts["trained on"] == "4,321 studies of 1,111 patients"
    assert page.facts["bundle"].endswith("0123456789abcdef" * 4)
    (row,) = page.table("study")
    assert row[:3] == ["1", "1.2.3.4", f"{said.result.probabilities[ANY]:.3f}"]
    assert row[5:] == [*(f"{p:.3f}" for p in said.result.probabilities[:ANY]), "12"]


# Along the head


def lines_of(page: Page) -> dict[tuple[str, str], np.ndarray]:
    """The points of each label's lines, by label and by what they are the line of."""
    names = [(label, name) for label in LABELS for name in ("cnn", "rnn", "blend")]
    return dict(zip(names, page.points(), strict=True))


@pytest.fixture(scope="module")
def writer(bundle, tmp_path_factory):
    """A writer for many examples."""
    made = StudyPages(tmp_path_factory.mktemp("pages"), bundle)
    made.clear()
    return made


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_every_line_lies_in_its_box(writer, twelve, data):
    """Whatever the positions, equal ones too: N points from left to right, as high as the slice is likely."""
    probability = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    steps = data.draw(st.lists(st.sampled_from([0.0, 0.6, 5.0]) | st.floats(0, 500), min_size=12, max_size=12))
    positions = data.draw(st.floats(-2000, 2000)) + np.cumsum(steps)
    said = replace(said_of(twelve), positions_mm=positions)
    for name in ("cnn", "rnn", "blend"):
        drawn = data.draw(st.lists(probability, min_size=12 * K, max_size=12 * K))
        said.beside[name].slices[:] = np.reshape(drawn, (12, K))
    page = Page(written(writer, without_files(twelve), said))
    assert len(page.views) == K
    left, top, width, height = map(float, page.views[0].split())
    assert left <= 0
    assert top <= 0
    assert left + width >= 300
    assert top + height >= 100
    for (label, name), points in lines_of(page).items():
        x, y = points.T
        assert len(points) == 12
        assert ((x >= 0) & (x <= 300)).all()
        assert ((y >= 0) & (y <= 100)).all()
        assert (np.diff(x) >= 0).all()
        assert y == pytest.approx(100 * (1 - said.beside[name].slices[:, LABELS.index(label)]), abs=0.051)


def test_a_strip_runs_from_the_lowest_slice_to_the_highest_by_millimetres(pages, twelve):
    """Slices far apart stand far apart: a gap is seen."""
    positions = np.array([-50.0, -45, -40, -35, -30, -25, -20, -15, -10, -5, 0, 50])
    page = Page(written(pages, without_files(twelve), replace(said_of(twelve), positions_mm=positions)))
    for points in page.points():
        assert points[:, 0] == pytest.approx([15 * i for i in range(11)] + [300], abs=0.06)
    assert "-50 mm" in page.text
    assert "50 mm" in page.text


def test_a_strip_marks_every_slice_and_the_key_slices(pages, twelve):
    """Each strip has a tick for every slice, and a line from top to bottom at the slices that are shown as pictures."""
    said = with_slices(twelve, [0.1, 0.9, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.7])
    path = written(pages, twelve, said)
    x = [round(300 * i / 11, 1) for i in range(12)]
    for strip in re.findall(r"<svg.*?</svg>", path.read_text(), flags=re.DOTALL):
        assert [float(at) for at in re.findall(r"M([\d.]+) 102v", strip)] == x
        assert [float(at) for at in re.findall(r"M([\d.]+) 0V100", strip)] == [x[1], x[5], x[11]]
    assert {int(alt.split()[1]) for alt, _ in Page(path).pictures} == {2, 6, 12}


def test_a_strip_says_where_it_is_highest(pages, twelve):
    """In words too, for who cannot see it: the blend's highest value and the place of that slice."""
    said = said_of(twelve)
    page = Page(written(pages, without_files(twelve), said))
    for k, label in enumerate(LABELS):
        top = said.slice_probabilities[:, k].argmax()
        expected = f"{label}: at most {said.slice_probabilities[top, k]:.2f}, at {said.positions_mm[top]:.0f} mm"
        assert expected in page.text


# Pictures


def colours_of(uri: str) -> np.ndarray:
    """The pixels of a JPEG in a page, (H, W, 3) RGB."""
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(float)


def test_each_picture_shows_the_slice_it_is_named_for(pages, scan):
    """Slices of their own grey: the likeliest, in order, in brain and subdural windows and with the map over it."""
    study = scan(30)
    probabilities = np.full(30, 0.1)
    probabilities[[4, 17, 29]] = 0.7, 0.9, 0.8
    page = Page(written(pages, study, with_slices(study, probabilities)))
    expected = [(i, view) for i in (4, 17, 29) for view in ("brain", "subdural", "CNN")]
    for (alt, uri), (hu, view) in zip(page.pictures, expected, strict=True):
        picture = colours_of(uri)
        level, width = (80, 200) if view == "subdural" else (40, 80)
        assert f"Slice {hu + 1} of 30" in alt
        assert view in alt
        assert picture.shape == (288, 288, 3)
        if view != "CNN":
            grey = 255 * max(0, (hu - level) / width + 0.5)
            assert picture[144, 144] == pytest.approx([grey] * 3, abs=2)
            assert picture[2, 2].max() <= 2  # air, beyond the image
    for number, probability in ((5, 0.7), (18, 0.9), (30, 0.8)):
        assert re.search(
            rf"brain; slice {number} \(instance \d+\), {5 * number - 65} mm, R on the left; any {probability:.2f}",
            page.text,
        )


def test_the_map_belongs_to_the_slice_below_it(pages, twelve, monkeypatch):
    """Each overlay has the map of its own slice, that of any haemorrhage, by the first encoder."""
    probabilities = np.arange(12) / 12
    asked = []

    def maps(encoder, hu):
        asked.append((encoder, hu.numpy()[:, 0]))
        made = np.zeros((len(hu), K, 2, 2), np.float32)
        for place in range(len(hu)):
            made[place, ANY].flat[place] = 1
        return made

    monkeypatch.setattr(study_pages, "activation_maps", maps)
    page = Page(written(pages, twelve, with_slices(twelve, probabilities)))
    ((encoder, seen),) = asked
    assert encoder is pages.bundle.embedders[0].encoder
    assert [image.max() for image in seen] == pytest.approx([7, 9, 11], abs=1e-3)
    overlaid = [colours_of(uri) for alt, uri in page.pictures if "CNN" in alt]
    for place, picture in enumerate(overlaid):
        redder = (picture[..., 0] - picture[..., 2]).reshape(2, 144, 2, 144).sum(axis=(1, 3))
        assert redder.argmax() == place


@pytest.mark.parametrize("lost", [None, 0, 6, 11])
def test_the_encoder_is_shown_what_it_was_shown_when_it_predicted(pages, twelve, bundle, execution, monkeypatch, lost):
    """A slice with the neighbours it had, a slice that was lost left out, the ends standing in for what is beyond."""
    config = {
        "slices": {"size": 32, "neighbours": [-1, 0, 2]},
        "encoder": {"arch": "test_resnet", "weights": "random"},
    }
    plain = build_encoder(Config.model_validate(config))
    encoder = with_head(plain, np.ones((K, plain.spec.dim), np.float32), np.zeros(K, np.float32))
    kept = [i for i in range(12) if i != lost]
    read, _, _ = read_study(replace(twelve, slices=tuple(twelve.slices[i] for i in kept)), encoder.spec)
    asked = []
    monkeypatch.setattr(study_pages, "activation_maps", lambda _, hu: asked.append(hu))
    chosen = [0, 5, len(kept) - 1]
    probabilities = np.zeros(12)
    probabilities[[kept[i] for i in chosen]] = 0.9
    whole = with_slices(twelve, probabilities)
    said = replace(
        whole,
        sop_uids=tuple(whole.sop_uids[i] for i in kept),
        positions_mm=whole.positions_mm[kept],
        beside={name: replace(p, slices=p.slices[kept]) for name, p in whole.beside.items()},
    )
    shown = StudyPages(pages.out, replace(bundle, embedders={0: Embedder(encoder, execution, CPU)}))
    written(shown, twelve, said)
    assert torch.equal(asked[0], windows.with_neighbours(torch.from_numpy(read), (-1, 0, 2))[chosen])


def test_a_network_without_places_has_pictures_without_a_map(pages, twelve, bundle, execution):
    """Of a ViT there is nothing to lay over a slice: two views, and no word of a third picture."""
    config = {"slices": {"size": 160}, "encoder": {"arch": "test_vit", "weights": "random"}}
    plain = build_encoder(Config.model_validate(config))
    encoder = with_head(plain, np.ones((K, plain.spec.dim), np.float32), np.zeros(K, np.float32))
    shown = StudyPages(pages.out, replace(bundle, embedders={0: Embedder(encoder, execution, CPU)}))
    page = Page(written(shown, twelve, said_of(twelve)))
    assert len(page.pictures) == 2 * KEY_SLICES
    assert not [alt for alt, _ in page.pictures if "CNN" in alt]


@pytest.mark.parametrize("harm", ["gone", "cut short", "cut frame"])
@pytest.mark.parametrize("which", ["all", "a key slice"])
def test_files_that_cannot_be_read_again_cost_the_pictures_only(pages, scan, cut_frame, which, harm):
    """The page is written with all its numbers, says why it shows nothing, and nothing is raised."""
    study = scan(5, stored=np.random.default_rng(0).integers(900, 1200, (16, 16)))
    said = with_slices(study, [0.9, 0.1, 0.8, 0.1, 0.7])
    for header in study.slices if which == "all" else study.slices[2:3]:
        if harm == "gone":
            header.path.unlink()
        elif harm == "cut short":
            header.path.write_bytes(header.path.read_bytes()[:-100])
        else:
            cut_frame(header.path)
    if harm == "cut frame":  # its header is sound, and tells how the pixels are stored now
        (study,) = find_studies(study.slices[0].path.parent).studies
    page = Page(written(pages, study, said))
    assert page.pictures == []
    assert "could not be read again" in page.text
    assert len(page.table("CNN")) == K
    assert len(page.table("SOP Instance UID")) == 5
    assert len(page.lines) == 3 * K


@pytest.mark.slow
@pytest.mark.parametrize(("slices", "keys"), [(1, 1), (2, 1), (3, 2)])
def test_a_study_of_few_slices_has_a_page(pages, scan, browser, slices, keys):
    """Down to a single slice, which stands in the middle: strips, pictures, tables, and no fault in a browser."""
    study = scan(slices)
    path = written(pages, study, with_slices(study, [0.9, 0.1, 0.8][:slices]))
    page = Page(path)
    assert len(page.pictures) == 3 * keys
    if slices == 1:
        assert {tuple(points[:, 0]) for points in page.points()} == {(150.0,)}
    assert f"few slices: {slices}" in page.text
    assert not browser.look(path).faults


def test_a_mirrored_slice_says_whose_side_is_left(pages, scan):
    """Pictures lie as stored; where columns run to the patient's right, the left of the picture is the left."""
    study = scan(12)
    turned = replace(study, slices=tuple(replace(h, orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) for h in study.slices))
    assert "L on the left" in Page(written(pages, turned, said_of(turned))).text


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_shades_are_shares_of_the_strongest_times_what_is_likely(seed, slices):
    """Within 0 and the slice's probability; what speaks against a finding is not shaded; nought stays nought."""
    rng = np.random.default_rng(seed)
    maps, p = rng.normal(size=(slices, 3, 4)).astype(np.float32), rng.random(slices)
    shades = study_pages.shades_of(maps, p)
    for map_, likely, shade in zip(maps, p, shades, strict=True):
        expected = np.maximum(map_, 0) / max(maps.max(), 1e-9) * likely
        assert shade == pytest.approx(expected, abs=1e-6)
    assert not study_pages.shades_of(-np.abs(maps), p).any()


def test_a_page_without_memory_for_pictures_is_a_page(pages, twelve, monkeypatch):
    """A GPU that is full, or a network that has no map to give, costs the pictures and not the prediction."""

    def full(encoder, hu):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(study_pages, "activation_maps", full)
    page = Page(written(pages, twelve, said_of(twelve)))
    assert page.pictures == []
    assert "No pictures" in page.text


def test_a_study_without_probability_stands_first(pages, scan):
    """NaN hides no study and leaves the order of the others."""
    said = [said_of(scan(3)) for _ in range(4)]
    said = [
        replace(s.result, study_uid=f"1.{i}", said=np.full((3, K), p))
        for i, (s, p) in enumerate(zip(said, [0.1, np.nan, 0.9, 0.2], strict=True))
    ]
    pages.write_worklist(said, COUNTS)
    assert [row[1] for row in Page(pages.out / "report.html").table("study")] == ["1.1", "1.2", "1.3", "1.0"]


# Text that means harm


def hostile(scan, text) -> tuple[Study, StudyPrediction]:
    """A study whose every text is this, as DICOM files bring it."""
    study = scan(3, Manufacturer=text, ManufacturerModelName=text, PatientID=text)
    assert text in study.scanner
    slices = tuple(replace(h, sop_uid=f"{text}{i}") for i, h in enumerate(study.slices))  # no file brings such UIDs in
    study = replace(study, uid=text, slices=slices)
    return study, said_of(study, patient_id=study.patient_id)


def without_policy(path: Path) -> Path:
    """A copy of a page less its content policy, beside it."""
    html, found = re.subn(rb'<meta http-equiv="Content-Security-Policy"[^>]*>', b"", path.read_bytes())
    assert found == 1
    copy = path.with_name("unbound.html")
    copy.write_bytes(html)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("text", PLANTED)
def test_planted_text_is_inert(pages, scan, bundle, browser, text):
    """As UID, Patient ID, scanner and card it is shown as text on study page and worklist, policy or no policy."""
    study, said = hostile(scan, text)
    shown = replace(pages, bundle=replace(bundle, card=CARD | {"intended_use": text}))
    path = written(shown, study, said)
    shown.write_worklist([said.result], COUNTS)
    page, worklist = Page(path), Page(pages.out / "report.html")
    assert page.facts["Study Instance UID"] == page.facts["Patient ID"] == text
    assert page.facts["scanner"] == f"{text} {text}"
    assert [row[-1] for row in page.table("SOP Instance UID")] == [f"{text}{i}" for i in range(3)]
    assert worklist.table("study")[0][1] == text
    assert text in worklist.text
    pictures = 3 * len(key_slices(said.slice_probabilities[:, ANY]))
    for one, count in ((path, pictures), (pages.out / "report.html", 0)):
        assert Page(one).tags.count("img") == count
        assert not browser.look(one).faults
        assert not browser.look(without_policy(one)).faults


def test_the_same_text_unescaped_would_run(browser, tmp_path):
    """The control: what is planted does harm in a page that lets it."""
    for text in PLANTED:
        (tmp_path / "page.html").write_text(f'<!DOCTYPE html><html><title>x</title><p title="{text}">{text}</p>')
        assert browser.look(tmp_path / "page.html").dialogs


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(deadline=None, max_examples=30)
def test_no_text_adds_a_tag(writer, twelve, text):
    """Whatever a UID, an ID or a scanner says, both pages have the tags that they have without."""
    study = without_files(twelve)
    plain = said_of(study, patient_id="P")
    result = replace(plain.result, study_uid=text, patient_id=text, scanner=text)
    said = replace(plain, result=result, sop_uids=(text, *plain.sop_uids[1:]))
    odd = replace(study, slices=(replace(study.slices[0], sop_uid=text), *study.slices[1:]))
    tags = []
    for whose, one in ((study, plain), (odd, said)):
        path = written(writer, whose, one)
        writer.write_worklist([one.result], COUNTS)
        tags.append((Page(path).tags, Page(writer.out / "report.html").tags))
        path.unlink()
    assert tags[0] == tags[1]


def test_letters_of_other_alphabets_come_back(pages, twelve):
    """Scanner and Patient ID are UTF-8; half a letter, as a damaged name leaves it, breaks nothing."""
    said = said_of(twelve, scanner="東芝 Aquilion", patient_id="Ärzte\ud800")
    facts = Page(written(pages, without_files(twelve), said)).facts
    assert facts["scanner"] == "東芝 Aquilion"
    assert facts["Patient ID"] == r"Ärzte\ud800"


# As a whole


@pytest.mark.slow
def test_both_pages_are_sound(pages, scan, browser, monkeypatch):
    """On a desktop and a phone, light and dark: nothing runs, nothing is fetched, nothing is unnamed or too wide."""
    monkeypatch.setattr(study_pages, "ROWS_A_PAGE", 3)
    study = scan(12, uid="1.2.840.113619.2.327.3.2831868886.746.1524459434.467.1234567890123", Manufacturer="GE")
    off = replace(SOUND, gaps=1, duplicates=2, tilt_deg=20.0, zones=3, spacing_mm=9.0)
    said = said_of(study, geometry=off, lost_slices=5, novelty=2.0, patient_id="P" * 64, scanner="S" * 128)
    path = written(pages, study, said)
    others = many(pages, study, [0.5] * 6)
    pages.write_worklist([one.result for one in (said, *others)], COUNTS)
    browser.assert_sound(path)
    browser.assert_sound(pages.out / "report.html")
    assert not browser.look(pages.out / "report" / "worklist-2.html").faults


def test_the_same_input_gives_the_same_bytes(bundle, twelve, tmp_path):
    """Twice, in folders of other names: no time, path or chance is in a page."""

    def tree(name):
        pages = StudyPages(tmp_path / name, bundle)
        pages.clear()
        said = said_of(twelve)
        pages.write_study(twelve, said)
        pages.write_worklist([said.result], COUNTS)
        return {p.relative_to(pages.out): p.read_bytes() for p in pages.out.rglob("*") if p.is_file()}

    first = tree("one")
    assert len(first) == 2
    assert first == tree("another")


def test_no_page_names_a_file_or_a_folder(pages, twelve):
    """Where the files lay is nobody's business: paths hold names of patients often enough."""
    said = said_of(twelve)
    path = written(pages, twelve, said)
    pages.write_worklist([said.result], COUNTS)
    folder = twelve.slices[0].path.parent
    for one in (path, pages.out / "report.html"):
        text = one.read_text()
        assert str(folder) not in text
        assert folder.name not in text
        assert ".dcm" not in text

"""explore: page, JSON and CSV of every form of input, the same to the byte, that trust no text and add up."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from pydicom.uid import ImplicitVRLittleEndian

import ich_seq
from ich_seq import NothingUsableError, UsageError, explore
from ich_seq.cli import cli
from ich_seq.exploration import summarised
from ich_seq.files import short_hash
from ich_seq.labels import LABELS, SUBTYPES, read_labels
from ich_seq.phantom import write_dataset
from ich_seq.studies import find_studies

pytest_plugins = ["browser"]

SECTIONS = (
    "counts", "prevalence", "co_occurrence", "slices", "runs", "profile", "geometry", "formats", "windows", "montages",
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six synthetic studies of small slices, scouts and all, and their labels."""
    return write_dataset(tmp_path_factory.mktemp("phantoms"), n_studies=6, seed=2, matrix=64, enrich=0.3)


@pytest.fixture(scope="module")
def explored(phantoms, tmp_path_factory):
    return explore(phantoms.dicom, tmp_path_factory.mktemp("explored") / "out", phantoms.labels)


@pytest.fixture(scope="module")
def slices(phantoms):
    """The phantoms as a table of slices with labels, as somebody would have made it from the files."""
    studies = find_studies(phantoms.dicom).studies
    labels = read_labels(phantoms.labels).table
    rows = [
        {"image_id": h.sop_uid, "StudyInstanceUID": h.study_uid, "SeriesInstanceUID": h.series_uid,
         "PatientID": h.patient_id, "Rows": h.rows, "Columns": h.columns, "BitsStored": h.bits_stored,
         "PixelRepresentation": int(h.signed), "RescaleSlope": h.slope, "RescaleIntercept": h.intercept,
         "ImagePositionPatient": str(list(h.position_mm)), "ImageOrientationPatient": str(list(h.orientation)),
         "PixelSpacing": str(list(h.spacing_mm)), "AcquisitionNumber": h.acquisition, "InstanceNumber": h.instance}
        for study in studies for h in study.slices
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.join(labels, on="image_id")


def text_of(out):
    return (out / "exploration.html").read_text("utf-8")


def bytes_of(out):
    return {p.name: p.read_bytes() for p in sorted(Path(out).iterdir()) if p.name != ".lock"}


def test_everything_is_written_and_the_json_is_what_was_returned(explored):
    """Five files; every section is there or named as absent, on the page too, with a link to it."""
    assert set(bytes_of(explored.out)) == {
        "exploration.html", "exploration.json", "figures.csv", "studies.csv", "rejected.csv",
    }  # fmt: skip
    assert json.loads((explored.out / "exploration.json").read_text()) == explored.exploration
    page = text_of(explored.out)
    for key in SECTIONS:
        assert f'<section id="{key}"' in page
        assert f'href="#{key}"' in page
    assert explored.exploration["absent"] == {}


def test_counts_add_up(explored, phantoms):
    """Each file has one fate, and slices, studies and labels are those that were drawn."""
    counts = explored.exploration["counts"]
    assert counts["files"] == phantoms.n_files == counts["used"] + counts["excluded"] + counts["rejected"]
    assert counts["slices"] == counts["used"] == phantoms.n_slices == counts["labelled_slices"]
    assert counts["excluded"] == sum(counts["reasons"].values()) == phantoms.n_files - phantoms.n_slices
    assert counts["studies"] == 6
    assert (counts["unlabelled_slices"], counts["labels_of_no_slice"], counts["duplicate_label_rows"]) == (0, 0, 0)


def test_figures_of_labels_are_those_of_pandas(explored, phantoms, slices):
    """Prevalence of slices and studies, pairs, profile and runs, worked out from the files in another way."""
    found = explored.exploration
    order = pd.read_csv(phantoms.order)
    table = order.merge(read_labels(phantoms.labels).table, left_on="sop", right_index=True)
    by_study = table.groupby("study")[list(LABELS)].max()
    for label in LABELS:
        assert found["prevalence"]["slices"][label]["positive"] == table[label].sum()
        assert found["prevalence"]["studies"][label]["positive"] == by_study[label].sum()
        assert found["co_occurrence"]["counts"]["any"][label] == table[label].sum()
        assert sum(found["profile"]["positive"][label]) == table[label].sum()
        lengths = [
            len(list(members))
            for _, study in table.groupby("study")
            for value, members in itertools.groupby(study[label])
            if value
        ]
        assert found["runs"][label]["runs"] == len(lengths)
        assert found["runs"][label]["longest"] == max(lengths, default=0)
        assert sum(int(n) * m for n, m in found["runs"][label]["lengths"].items()) == table[label].sum()
    assert found["runs"]["any"]["neighbours"] == len(table) - len(by_study)
    assert sum(found["co_occurrence"]["subtypes_of_a_slice"].values()) == len(table)
    assert sum(found["slices"]["studies"]) == len(by_study)


def test_the_table_of_studies_has_a_row_a_study(explored, phantoms):
    """Counts of slices and of positive ones add up to those of all, geometry stands beside; no patient is named."""
    table = pd.read_csv(explored.out / "studies.csv")
    assert table["slices"].sum() == table["labelled_slices"].sum() == phantoms.n_slices
    assert table["study_uid"].is_monotonic_increasing
    for label in LABELS:
        assert table[label].sum() == explored.exploration["prevalence"]["slices"][label]["positive"]
    assert table["patient"].tolist()[0] == 1
    assert table["patient"].nunique() == explored.exploration["counts"]["patients"]
    zones = {int(k): n for k, n in explored.exploration["geometry"]["zones"].items()}
    assert table["zones"].value_counts().to_dict() == zones


def test_the_flat_table_has_every_number_of_the_json(explored):
    """figures.csv: no row twice, and as many as there are numbers and nulls of numbers in lists."""

    def numbers(value, key=""):
        if isinstance(value, dict):
            return sum(numbers(v, k) for k, v in value.items())
        if isinstance(value, list):
            return 0 if key == "edges" else len(value)
        return int(isinstance(value, int | float))

    sections = {k: v for k, v in explored.exploration.items() if k in SECTIONS}
    table = pd.read_csv(explored.out / "figures.csv", keep_default_na=False)
    assert len(table) == numbers(sections)
    assert not table.duplicated(["section", "name", "label"]).any()
    row = table.query("section == 'prevalence' and name == 'slices/share' and label == 'subdural'").iloc[0]
    assert float(row["value"]) == explored.exploration["prevalence"]["slices"]["subdural"]["share"]
    row = table.query("section == 'profile' and name == 'share/0.5 to 0.55' and label == 'any'").iloc[0]
    assert float(row["value"]) == explored.exploration["profile"]["share"]["any"][10]


@pytest.mark.slow
def test_a_second_run_and_other_names_give_the_same_bytes(explored, phantoms, tmp_path):
    """Files under other names, in subfolders, labels in another order: every byte is the same but for rejected.csv."""
    folder = tmp_path / phantoms.dicom.name
    for i, path in enumerate(sorted(phantoms.dicom.iterdir(), reverse=True)):
        (folder / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{i % 3}" / f"{i}.dcm")
    long = pd.read_csv(phantoms.labels).sample(frac=1, random_state=0)
    long.to_csv(tmp_path / "labels.csv", index=False)
    again = explore(folder, tmp_path / "out", tmp_path / "labels.csv", workers=0)
    same, other = bytes_of(explored.out), bytes_of(again.out)
    assert same.pop("rejected.csv").count(b"\n") == other.pop("rejected.csv").count(b"\n")
    assert same == other


@pytest.mark.slow
def test_a_table_of_slices_tells_what_its_files_tell(explored, slices, tmp_path):
    """The same figures but for what only files hold; in any order of rows, to the byte."""
    (tmp_path / "b").mkdir()
    paths = tmp_path / "t.csv", tmp_path / "b" / "t.csv"
    slices.to_csv(paths[0], index=False)
    slices.sample(frac=1, random_state=0).to_csv(paths[1], index=False)
    found = [explore(path, tmp_path / f"out{i}") for i, path in enumerate(paths)]
    assert bytes_of(found[0].out) == bytes_of(found[1].out)
    for key in ("prevalence", "co_occurrence", "slices", "runs", "profile", "geometry"):
        assert found[0].exploration[key] == explored.exploration[key]
    formats = found[0].exploration["formats"]
    assert formats["pixels"] == explored.exploration["formats"]["pixels"]
    assert "transfer_syntax" not in formats
    assert "padding_value" not in formats["quirks"]
    assert set(found[0].exploration["absent"]) == {"windows", "montages"}


@pytest.mark.slow
def test_labels_beside_a_table_stand_in_for_its_own(slices, tmp_path):
    """Only the first half of the slices is labelled there; the others are counted as unlabelled."""
    slices.to_csv(tmp_path / "t.csv", index=False)
    half = slices.iloc[: len(slices) // 2][["image_id", *SUBTYPES]].assign(epidural=1)
    half.to_csv(tmp_path / "labels.csv", index=False)
    found = explore(tmp_path / "t.csv", tmp_path / "out", tmp_path / "labels.csv").exploration
    assert found["counts"]["labelled_slices"] == len(half) == found["prevalence"]["slices"]["epidural"]["positive"]
    assert found["counts"]["unlabelled_slices"] == len(slices) - len(half)
    assert found["prevalence"]["slices"]["any"]["share"] == 1
    assert found["runs"]["any"]["agreeing_share"] == 1


def test_a_table_without_labels_says_so_once_a_section(slices, tmp_path):
    """No label sections, but all about geometry and formats."""
    slices.drop(columns=list(LABELS)).to_csv(tmp_path / "t.csv", index=False)
    found = explore(tmp_path / "t.csv", tmp_path / "out").exploration
    assert {"prevalence", "co_occurrence", "runs", "profile", "windows", "montages"} == set(found["absent"])
    assert {"slices", "geometry", "formats"} <= set(found)
    assert text_of(tmp_path / "out").count("There are no labels of slices; give them with --labels.") == 4


def test_a_label_file_tells_labels_only(phantoms, tmp_path):
    """Prevalence of slices and pairs; what needs headers is named as absent, and no studies.csv is left over."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "studies.csv").write_text("of an older run")
    found = explore(phantoms.labels, tmp_path / "out")
    assert set(found.exploration["prevalence"]) == {"slices"}
    assert set(found.exploration["absent"]) == set(SECTIONS) - {"counts", "prevalence", "co_occurrence"}
    assert found.exploration["counts"]["slices"] == phantoms.n_slices
    assert not (tmp_path / "out" / "studies.csv").exists()


def test_a_table_of_studies_tells_prevalence_of_studies_and_patients(tmp_path):
    """Patients with several studies are counted, and each study has its row."""
    rows = [{"StudyInstanceUID": f"S{i}", "PatientID": f"P{i // 2}", **dict.fromkeys(LABELS, i % 2)} for i in range(6)]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    found = explore(tmp_path / "t.csv", tmp_path / "out")
    counts = found.exploration["counts"]
    assert (counts["studies"], counts["patients"], counts["patients_with_several_studies"]) == (6, 3, 3)
    assert found.exploration["prevalence"]["studies"]["subdural"] == {"positive": 3, "of": 6, "share": 0.5}
    table = pd.read_csv(tmp_path / "out" / "studies.csv")
    assert table["patient"].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.slow
def test_text_of_others_is_never_markup(write_slice, tmp_path):
    """Script in the scanner's name, in file names and in the folder's is none on the page; in a UID it is refused."""
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    for i in range(4):
        write_slice(
            folder / f"<script>alert({i}).dcm", syntax=ImplicitVRLittleEndian, stored=np.full((32, 32), 1064 + i),
            drop=["Manufacturer"], SOPInstanceUID=HOSTILE if i == 3 else f"1.{i}", ImagePositionPatient=[0, 0, 5 * i],
            text={"Manufacturer": HOSTILE},
        )  # fmt: skip
    labels = pd.DataFrame([{"image_id": f"1.{i}", **dict.fromkeys(SUBTYPES, i % 2)} for i in range(3)])
    labels.to_csv(tmp_path / "labels.csv", index=False)
    found = explore(folder, tmp_path / "out", tmp_path / "labels.csv", phi=True)
    page = text_of(found.out)
    assert "<script" not in page.lower()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert found.counts.reasons == {"uid": 1}
    assert list(found.exploration["formats"]["scanner"]) == [HOSTILE]


def test_a_hostile_table_is_text_too(slices, tmp_path):
    """Studies, makers and the file itself may be named like markup."""
    table = slices.assign(StudyInstanceUID=HOSTILE, PatientID="P", Manufacturer=HOSTILE, ManufacturerModelName="M")
    path = tmp_path / "<script>.csv"
    table.to_csv(path, index=False)
    page = text_of(explore(path, tmp_path / "out").out)
    assert "<script" not in page.lower()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; M" in page


def test_a_name_that_is_no_text_breaks_nothing(phantoms, tmp_path):
    """Names on disk may be bytes of no encoding, which neither a page nor JSON could hold."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    for path in sorted(phantoms.dicom.iterdir())[:40]:
        shutil.copy(path, folder)
    (folder / os.fsdecode(b"\xff.dcm")).write_bytes(b"no DICOM")
    found = explore(folder, tmp_path / "out")
    assert found.counts.rejected == 1
    assert "caf" not in text_of(found.out), "the name of a folder may be a patient's"


def test_the_page_is_one_file_without_scripts_and_its_tables_are_named(explored):
    """No reference outwards; each table scrolls by itself and has a caption, each picture a text."""
    page = text_of(explored.out)
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert page.count("<table>") == page.count("<caption>") == page.count('<div class="wide" tabindex="0"')
    assert page.count("<img") == page.count('alt="') == 6 + page.count("slices, brain window") // 2 + page.count(
        "slices, subdural window"
    ) // 2  # fmt: skip
    assert page.count("<figure>") >= page.count("<figcaption>")


@pytest.mark.slow
def test_a_browser_finds_the_page_sound(explored, browser):
    """Nothing runs, nothing is asked for, nothing reaches beyond a phone's edge, and all has a name to be read out."""
    browser.assert_sound(explored.out / "exploration.html")


def test_quirks_and_formats_are_counted(write_slice, tmp_path):
    """The wrapped 12-bit slice, signed HU, padding, oblong pixels: each where it is, and only there."""
    kinds = [
        {"BitsStored": 12, "PixelRepresentation": 0, "RescaleIntercept": "0", "stored": np.full((32, 32), 100)},
        {"RescaleIntercept": "0", "PixelPaddingValue": -2000},
        {"RescaleSlope": "2", "PixelSpacing": [0.5, 0.6]},
        {"PatientID": ""},
    ]
    for i, kind in enumerate(kinds):
        write_slice(tmp_path / f"{i}.dcm", SOPInstanceUID=f"1.{i}", ImagePositionPatient=[0, 0, 5 * i], **kind)
    formats = explore(tmp_path, tmp_path / "out").exploration["formats"]
    assert formats["quirks"] == {
        "wrapped_12_bit": 1, "signed_with_intercept_0": 1, "slope_not_1": 1, "padding_value": 1,
        "padding_denser_than_bone": 0, "pixels_not_square": 1, "no_patient_id": 1,
    }  # fmt: skip
    assert formats["pixels"] == {"16 bit signed": 3, "12 bit unsigned": 1}
    assert formats["padding"] == {"(not told)": 3, "-2000": 1}
    assert formats["transfer_syntax"] == {"Explicit VR Little Endian": 4}


@pytest.mark.slow
def test_rejected_files_end_with_3_and_are_listed(write_slice, write_labels, tmp_path):
    """The command does what it can, says what it left out, and its stdout has counts and prevalence."""
    folder = tmp_path / "dicom"
    folder.mkdir()
    for i in range(3):
        write_slice(folder / f"{i}.dcm", SOPInstanceUID=f"1.{i}", ImagePositionPatient=[0, 0, 5 * i])
    (folder / "broken.dcm").write_bytes(b"no DICOM at all")
    labels = write_labels(tmp_path / "labels.csv", {f"1.{i}": [0, 0, 0, 0, i % 2, i % 2] for i in range(3)})
    arguments = ["explore", str(folder), "--labels", str(labels), "--out", str(tmp_path / "out"), "--quiet"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 3
    assert "1 rejected" in result.stderr
    assert "3 slices, 1 studies, 1 patients" in result.stdout
    assert re.search(r"subdural +1 \(33\.3 %\) +1 \(100\.0 %\)", result.stdout)
    assert f"{short_hash('broken.dcm')},rejected,not_dicom" in (tmp_path / "out" / "rejected.csv").read_text()


def test_json_on_stdout_is_the_whole_exploration(phantoms, tmp_path):
    """For programs: one JSON object, and 0 where nothing was rejected."""
    result = CliRunner().invoke(cli, ["explore", str(phantoms.labels), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["exploration"] == json.loads((tmp_path / "out" / "exploration.json").read_text())


def test_a_refused_slice_is_in_no_figure(write_slice, cut_frame, tmp_path):
    """Without labels, a slice whose pixels cannot be read is counted as rejected and not as a slice; stdout says so."""
    for i in range(3):
        write_slice(tmp_path / f"{i}.dcm", SOPInstanceUID=f"1.{i}", ImagePositionPatient=[0, 0, 5 * i])
    cut_frame(tmp_path / "1.dcm")
    found = explore(tmp_path, tmp_path / "out")
    counts = found.exploration["counts"]
    assert (counts["files"], counts["used"], counts["slices"], counts["reasons"]) == (3, 2, 2, {"decode": 1})
    assert found.exploration["geometry"]["largest_step_mm"] == 10
    assert summarised(found.exploration).startswith("2 slices, 1 studies, 1 patients\nThere are no labels")


def test_nothing_usable_ends_with_4_and_why(tmp_path, slices):
    """A folder without CT, and a table of which no row has a position: rejected.csv says why, no page is left."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"no DICOM")
    slices.assign(ImagePositionPatient="").to_csv(tmp_path / "t.csv", index=False)
    for source in ("in", "t.csv"):
        with pytest.raises(NothingUsableError):
            explore(tmp_path / source, tmp_path / "out")
        assert sorted(bytes_of(tmp_path / "out")) == ["rejected.csv"]


def test_a_folder_of_damaged_slices_ends_with_4(write_slice, cut_frame, tmp_path):
    """The headers are sound, but no slice can be read: each is tried, and all are named."""
    for i in range(3):
        cut_frame(write_slice(tmp_path / f"{i}.dcm", SOPInstanceUID=f"1.{i}", ImagePositionPatient=[0, 0, 5 * i]))
    with pytest.raises(NothingUsableError, match="Nothing of the 3"):
        explore(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "rejected.csv").read_text().count("rejected,decode") == 3


def test_what_cannot_be_meant_is_refused_before_anything_is_written(phantoms, tmp_path, write_labels):
    """Labels of other slices, labels beside a label file, a source that is not there."""
    others = write_labels(tmp_path / "others.csv", {"1.9": [0] * 6})
    with pytest.raises(UsageError, match="No label belongs to a slice"):
        explore(phantoms.dicom, tmp_path / "out", others)
    with pytest.raises(UsageError, match="leave out --labels"):
        explore(phantoms.labels, tmp_path / "out", phantoms.labels)
    with pytest.raises(UsageError, match="cannot be read"):
        explore(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_python_call_stands_beside_the_command():
    """As all others: lazily, from the package itself; the command comes first in the help."""
    assert ich_seq.explore is explore
    assert next(iter(cli.commands)) == "explore"


@pytest.mark.slow
def test_real_labels_show_what_is_known_of_them(shared_data, tmp_path):
    """RSNA's 1,110 studies: 13.6 % of slices bleed, neighbours agree in 96.6 %, four in ten studies have two zones."""
    found = explore(shared_data / "rsna_tables" / "stage1test_slices.csv.gz", tmp_path / "out").exploration
    assert found["prevalence"]["slices"]["any"] == {"positive": 5356, "of": 39409, "share": 0.135908}
    assert found["runs"]["any"]["agreeing_share"] == pytest.approx(0.966, abs=5e-4)
    assert found["geometry"]["zones"]["2"] == 466
    assert found["counts"]["patients"] == 1072
    assert max(found["profile"]["share"]["any"][8:12]) == max(found["profile"]["share"]["any"])

"""The gallery: which slices are shown, what of them, and that one that cannot be read is passed over and counted."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ich_seq.collection import collect
from ich_seq.config import AIR_HU
from ich_seq.gallery import (
    MIDDLE,
    MOST_TILES,
    NONE,
    SENTENCES,
    TISSUES_HU,
    fitted,
    from_the_middle,
    hang,
    histogram_edges_hu,
    hu_shares,
    through_windows,
    tiled,
)
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS, SUBTYPES, read_labels
from ich_seq.phantom import write_dataset
from ich_seq.pictures import WINDOWS_HU, shown


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Ten synthetic studies of small slices, and their labels."""
    return write_dataset(tmp_path_factory.mktemp("phantoms"), n_studies=10, seed=1, matrix=64, enrich=0.3)


@pytest.fixture(scope="module")
def found(phantoms):
    return collect(phantoms.dicom, phantoms.labels)


@pytest.fixture(scope="module")
def gallery(found):
    return hang(found)


def test_every_window_has_a_picture_and_a_sentence(gallery):
    """The full range, the four windows head CT is read in, and the sigmoid; a slice with haemorrhage where there is."""
    assert list(gallery.windows) == list(SENTENCES) == ["full range", *WINDOWS_HU, "sigmoid brain"]
    assert all(picture.dtype == np.uint8 for picture in gallery.windows.values())
    assert len({picture.tobytes() for picture in gallery.windows.values()}) == len(SENTENCES)


def test_sentences_tell_the_ends_of_their_windows():
    """A sentence that names HU must not lie when a window is changed."""
    for name, (level, width) in WINDOWS_HU.items():
        assert SENTENCES[name].startswith(f"{level - width / 2:g} to {level + width / 2:g} HU.")


def test_montages_are_of_different_studies_that_have_the_label(found, phantoms, gallery):
    """Up to six, each from a study positive for the label; those without haemorrhage have none at all."""
    truth = read_labels(phantoms.labels)
    of_study = {s.uid: truth.targets([h.sop_uid for h in s.slices]).max(axis=0) for s in found.studies}
    names = [m.name for m in gallery.montages]
    assert set(names) <= {*SUBTYPES, NONE}
    for m in gallery.montages:
        assert 1 <= len(m.study_uids) == len(set(m.study_uids)) <= MOST_TILES
        wanted = [not t.any() if m.name == NONE else t[LABELS.index(m.name)] for t in map(of_study.get, m.study_uids)]
        assert all(wanted)
    positive = {label for k, label in enumerate(SUBTYPES) if any(t[k] for t in of_study.values())}
    assert positive == set(names) - {NONE}
    assert {m.window for m in gallery.montages if m.name in ("epidural", "subdural")} <= {"subdural"}


def test_without_labels_the_middle_slices_are_shown(phantoms):
    """One montage, of six studies, and still one slice through all windows."""
    gallery = hang(collect(phantoms.dicom, None))
    (montage,) = gallery.montages
    assert (montage.name, len(montage.study_uids)) == (MIDDLE, MOST_TILES)
    assert len(gallery.windows) == len(SENTENCES)


def test_a_slice_that_cannot_be_read_is_passed_over_and_counted(phantoms, tmp_path, cut_frame):
    """The next one of the study stands in; the file is counted as rejected, and all still add up."""
    folder = shutil.copytree(phantoms.dicom, tmp_path / "dicom")
    before = collect(folder, None)
    shown_first = hang(before).montages[0].study_uids[0]
    study = next(s for s in before.studies if s.uid == shown_first)
    middle = study.slices[from_the_middle(np.ones(len(study.slices), bool))[0]]
    cut_frame(middle.path)
    found = collect(folder, None)
    gallery = hang(found)
    assert gallery.montages[0].study_uids[0] == shown_first
    assert [u.file for u in gallery.refused] == [middle.file]
    after = found.without(gallery.refused)
    assert (after.counts.rejected, after.counts.reasons["decode"]) == (1, 1)
    assert after.counts.used == before.counts.used - 1 == sum(len(s.slices) for s in after.studies)
    assert after.counts.files == before.counts.files


def test_a_study_that_cannot_be_read_at_all_gives_its_place_to_another(write_slice, tmp_path, cut_frame):
    """Of two studies one is damaged throughout: the montage has one tile, and nothing of the other is left."""
    for study in "ab":
        for i in range(3):
            path = write_slice(
                tmp_path / f"{study}{i}.dcm", SOPInstanceUID=f"1.{ord(study)}.{i}", StudyInstanceUID=f"1.{ord(study)}",
                ImagePositionPatient=[0, 0, 5 * i], SeriesInstanceUID=f"1.{ord(study)}.9",
                stored=np.full((64, 64), 1064),
            )  # fmt: skip
            if study == "a":
                cut_frame(path)
    found = collect(tmp_path, None)
    gallery = hang(found)
    assert gallery.montages[0].study_uids == ("1.98",)
    assert len(gallery.refused) == 3
    assert [s.uid for s in found.without(gallery.refused).studies] == ["1.98"]


def test_the_middle_slice_comes_first_then_those_beside_it():
    """Of the fitting ones, the middle one by rank; the others by distance from it, the lower first."""
    fitting = np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)
    assert from_the_middle(fitting) == [4, 5, 2, 6, 1]
    assert from_the_middle(np.zeros(4, bool)) == []


def test_a_fitted_slice_keeps_its_shape_and_its_mean():
    """Long pixels make a tall picture, with air beside it; the mean HU of the image stays."""
    hu = np.random.default_rng(0).normal(40, 10, (40, 40)).astype(np.float32)
    square = fitted(hu, (1.0, 0.5), 80)
    assert square.shape == (80, 80)
    assert (square[:, :20] == AIR_HU).all()
    assert (square[:, 60:] == AIR_HU).all()
    assert square[:, 20:60].mean() == pytest.approx(hu.mean(), abs=0.1)
    assert np.array_equal(fitted(hu, (0.5, 0.5), 40), hu)


def test_tiles_lie_in_rows_of_three():
    """Each tile where a plain loop puts it, seams and what a last row lacks black."""
    tiles = [np.full((8, 8), 10 * (i + 1), np.uint8) for i in range(5)]
    whole = tiled(tiles)
    assert whole.shape == (20, 32)
    for i in range(5):
        assert (whole[12 * (i // 3) : 12 * (i // 3) + 8, 12 * (i % 3) : 12 * (i % 3) + 8] == 10 * (i + 1)).all()
    assert int(whole.sum()) == sum(int(t.sum()) for t in tiles)
    assert tiled(tiles[:1]).shape == (8, 8)


def test_shares_are_of_all_pixels_those_beyond_the_bins_too():
    """Half air, a quarter at 60 HU: the bin of 60 holds a quarter, and the bins hold half."""
    hu = np.full((4, 4), -1000, np.float32)
    hu[:1], hu[1:2] = 60, 20
    shares = hu_shares([hu, hu])
    edges = histogram_edges_hu()
    assert shares.sum() == 0.5
    assert shares[np.searchsorted(edges, 60, side="right") - 1] == 0.25


def test_tissues_stand_in_order_and_within_the_histogram():
    """Bands do not overlap, from water to blood."""
    ends = [end for band in TISSUES_HU.values() for end in band]
    assert ends == sorted(ends)
    assert histogram_edges_hu()[0] < ends[0]
    assert ends[-1] < histogram_edges_hu()[-1]


def test_the_brain_window_of_the_gallery_is_that_of_the_slice(found):
    """What is shown are the pixels of a slice, by the same window as anywhere else."""
    hu = read_hounsfield(found.studies[0].slices[0])
    assert np.array_equal(through_windows(hu, (0.5, 0.5))["brain"], shown(hu, WINDOWS_HU["brain"]))

"""pictures: grey by DICOM's own formulas, maps laid over without touching the rest, PNGs that keep every pixel."""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from ich_seq.pictures import MOST_SHADE, SHADE_RGB, WINDOWS_HU, data_uri, jpeg_uri, overlaid, shown, sigmoid_shown

HU = np.arange(-1100, 3100, 0.25, np.float32).reshape(80, -1)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 17), np.uint8)
RGB = RNG.integers(0, 256, (24, 17, 3), np.uint8)
WINDOWS = pytest.mark.parametrize("window_hu", WINDOWS_HU.values(), ids=WINDOWS_HU)


def by_pydicom(function, window_hu):
    """Return the slice through a window as pydicom has it for 8 bits, not yet rounded."""
    ds = Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 8, 0
    ds.WindowCenter, ds.WindowWidth = window_hu
    ds.VOILUTFunction = function
    return apply_windowing(HU.astype(np.float64), ds)


@WINDOWS
def test_window_is_a_ramp(window_hu):
    """Value by value: black up to the lower edge, white from the upper, in between in proportion."""
    level, width = window_hu
    for hu, grey in zip(HU.ravel()[::97].tolist(), shown(HU, window_hu).ravel()[::97].tolist(), strict=True):
        if hu <= level - width / 2:
            assert grey == 0
        elif hu >= level + width / 2:
            assert grey == 255
        else:
            assert abs(grey - 255 * (hu - (level - width / 2)) / width) <= 0.501


@WINDOWS
@pytest.mark.parametrize(("window", "function"), [(shown, "LINEAR_EXACT"), (sigmoid_shown, "SIGMOID")])
def test_window_is_pydicoms(window_hu, window, function):
    """The nearest whole number to what pydicom makes of DICOM's VOI LUT function."""
    grey = window(HU, window_hu)
    assert grey.dtype == np.uint8
    assert grey.shape == HU.shape
    assert np.abs(grey - by_pydicom(function, window_hu)).max() <= 0.501


def test_sigmoid_cuts_nothing_off():
    """Beyond the edges, where the ramp is black and white, a slice still differs."""
    beyond = np.array([[-20, 0, 80, 100]], np.float32)
    assert shown(beyond, (40, 80)).tolist() == [[0, 0, 255, 255]]
    assert len(set(sigmoid_shown(beyond, (40, 80)).ravel().tolist())) == 4


EVERYWHERE = np.ones(GREY.shape, bool)


def test_a_shade_is_mixed_in_by_its_strength_and_where_it_may():
    """Each colour is the mix of the slice's grey and the shade's; where it may not, or nothing is shaded, the grey."""
    shade = RNG.random(GREY.shape).astype(np.float32)
    shade[0] = 0
    where = RNG.random(GREY.shape) < 0.7
    laid = overlaid(GREY, shade, where)
    assert laid.shape == (*GREY.shape, 3)
    for at in np.ndindex(GREY.shape):
        share = MOST_SHADE * float(shade[at]) * bool(where[at])
        mixed = [(1 - share) * float(GREY[at]) + share * colour for colour in SHADE_RGB]
        assert np.abs(laid[at] - np.array(mixed)).max() <= 0.501
    kept = ~where | (shade == 0)
    assert (laid[kept] == GREY[kept][:, None]).all()


def test_no_shade_leaves_the_slice():
    """Nothing to shade."""
    assert (overlaid(GREY, np.zeros((3, 3), np.float32), EVERYWHERE) == GREY[..., None]).all()


def test_small_map_lies_where_it_belongs():
    """A shade of 2 x 2 over the slice: its one corner shades that corner, and nothing across from it."""
    dark = np.zeros((40, 60), np.uint8)
    laid = overlaid(dark, np.array([[0, 0], [0, 1]], np.float32), np.ones(dark.shape, bool))
    assert laid[-1, -1].tolist() == [round(MOST_SHADE * colour) for colour in SHADE_RGB]
    assert not laid[:10].any()
    assert not laid[:, :15].any()


@pytest.mark.parametrize("picture", [GREY, RGB, RGB[:, ::2], GREY[:1, :1]], ids=["grey", "RGB", "a view", "a pixel"])
def test_png_keeps_every_pixel(picture):
    """Pillow reads back what went in, red first; so does OpenCV, blue first."""
    head, _, data = data_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    png = base64.b64decode(data, validate=True)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), picture)
    read = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read if picture.ndim == 2 else read[..., ::-1], picture)


def test_jpeg_is_like_the_picture_and_smaller():
    """Colours in their order and near, in fewer bytes than the PNG of a slice with noise."""
    shades = np.linspace([200, 90, 20], [250, 120, 40], 128)[:, None] + RNG.normal(0, 4, (128, 128, 3))
    picture = shades.round().clip(0, 255).astype(np.uint8)
    head, _, data = jpeg_uri(picture).partition(",")
    assert head == "data:image/jpeg;base64"
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))), np.float64)
    assert np.abs(read.mean(axis=(0, 1)) - picture.mean(axis=(0, 1))).max() < 3
    assert len(data) < len(data_uri(picture)) / 2

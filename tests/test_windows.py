"""From HU to the network's input: one physical scale, windows by formula, neighbours by index."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq.config import AIR_HU, Slices
from ich_seq.windows import apply, resample, with_neighbours

FIELD = 250.0
SIZE = 64


def head(height: int, width: int, spacing: tuple[float, float]) -> np.ndarray:
    """A smooth head, (H, W) HU, in the middle of the image: within 85 mm of it tissue, beyond exactly air.

    Each value is the image at the pixel's centre, so any matrix shows one and the same object. It is
    lopsided, so that a shift, a turn or a mirror image would show.
    """
    y = (np.arange(height) - (height - 1) / 2)[:, None] * spacing[0]
    x = (np.arange(width) - (width - 1) / 2)[None, :] * spacing[1]
    edge = 0.5 + 0.5 * np.cos(np.pi * np.clip((np.hypot(y, x * 1.15) - 45) / 40, 0, 1))
    inside = 40 + 300 * np.exp(-((y - 25) ** 2 + (x + 15) ** 2) / 450) + 60 * np.sin(y / 12) * np.cos(x / 15)
    return (AIR_HU + (inside - AIR_HU) * edge).astype(np.float32)


def seen(height: int, width: int, spacing: tuple[float, float]) -> np.ndarray:
    return resample(head(height, width, spacing), spacing, field_mm=FIELD, size=SIZE)


@cache
def averaged() -> np.ndarray:
    """What the network should see of the head: the mean of 40 x 40 points within each of its pixels."""
    fine = head(40 * SIZE, 40 * SIZE, (FIELD / SIZE / 40,) * 2)
    return fine.astype(np.float64).reshape(SIZE, 40, SIZE, 40).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("height", "width", "spacing"),
    [
        pytest.param(512, 512, (0.488281, 0.488281), id="usual"),
        pytest.param(1024, 1024, (0.244141, 0.244141), id="fine-matrix"),
        pytest.param(256, 256, (0.976562, 0.976562), id="coarse-matrix"),
        pytest.param(400, 400, (0.5, 0.5), id="smaller-than-the-field"),
        pytest.param(768, 640, (0.488281, 0.488281), id="larger-than-the-field"),
        pytest.param(500, 312, (0.5, 0.78125), id="anisotropic"),
    ],
)
def test_matrix_and_spacing_do_not_matter(height, width, spacing):
    """The same head, scanned with another matrix and pixel spacing, looks the same to the network within 1 HU."""
    got = seen(height, width, spacing)
    assert got.shape == (SIZE, SIZE)
    assert got.dtype == np.float32
    assert np.abs(got - averaged()).max() < 1


@given(
    spacing=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)),
    matrix=st.tuples(st.integers(180, 700), st.integers(180, 700)),
)
@settings(deadline=None, max_examples=40)
def test_any_matrix_and_spacing_show_the_same_head(spacing, matrix):
    """Whatever the matrix and spacing, odd or even, the head neither moves nor changes its size: 2 HU at most."""
    # The head must be in the picture: 85 mm to each side, and half a pixel.
    height, width = (max(n, int(172 / s) + 1) for n, s in zip(matrix, spacing, strict=True))
    assert np.abs(seen(height, width, spacing) - averaged()).max() < 2


@pytest.mark.parametrize("pixels", [512, 500, 256])
def test_areas_are_averaged_as_opencv_does_where_both_can(pixels):
    """A field of whole pixels is shrunk as cv2.INTER_AREA does, to a hundredth of a HU."""
    hu = np.random.default_rng(pixels).normal(0, 300, (pixels, pixels)).astype(np.float32)
    got = resample(hu, (0.5, 0.5), field_mm=pixels * 0.5, size=200)
    assert np.abs(got - cv2.resize(hu, (200, 200), interpolation=cv2.INTER_AREA)).max() < 0.01


def test_a_network_pixel_is_field_over_size_millimetres():
    """A disc of known radius has the area it must have in network pixels, at every field, size and spacing."""
    for spacing, field_mm, size in [((0.5, 0.5), 250, 256), ((0.3, 0.3), 200, 128), ((0.5, 0.8), 300, 64)]:
        n = 900
        y, x = (np.arange(n) - (n - 1) / 2)[:, None] * spacing[0], (np.arange(n) - (n - 1) / 2)[None] * spacing[1]
        disc = np.where(np.hypot(y, x) < 60, 100, 0).astype(np.float32)
        got = resample(disc, spacing, field_mm=field_mm, size=size)
        area_mm2 = got.sum() / 100 * (field_mm / size) ** 2
        assert area_mm2 == pytest.approx(np.pi * 60**2, rel=0.01)


@given(
    margin=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    side=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    spacing=st.tuples(st.floats(0.3, 2.5), st.floats(0.3, 2.5)),
    size=st.sampled_from([32, 64, 96]),
)
@settings(deadline=None, max_examples=80)
def test_padding_with_air_changes_no_bit(margin, side, spacing, size):
    """Air added evenly around a slice, as scanners and converters do, leaves the result bit for bit the same."""
    hu = np.random.default_rng(side[0]).normal(0, 300, side).astype(np.float32)
    padded = np.pad(hu, [(margin[0],) * 2, (margin[1],) * 2], constant_values=AIR_HU)
    plain = resample(hu, spacing, field_mm=100, size=size)
    assert plain.shape == (size, size)
    assert np.isfinite(plain).all()
    assert resample(padded, spacing, field_mm=100, size=size).tobytes() == plain.tobytes()


@pytest.mark.parametrize("spacing", [(0.2, 0.2), (0.7, 0.7), (2.5, 2.5), (0.3, 2.5)])
def test_values_stay_between_the_darkest_and_the_brightest(spacing):
    """Resampling makes no HU that is not in the slice or air: no ringing that a window would show as blood."""
    hu = np.random.default_rng(0).choice([-1000, 0, 1500], (300, 280)).astype(np.float32)
    got = resample(hu, spacing, field_mm=FIELD, size=128)
    assert got.min() >= AIR_HU - 0.01  # float32 sums of weights are 1 but for the last bit
    assert got.max() <= 1500 + 0.01


def test_what_lies_outside_the_image_is_air():
    """A slice smaller than the field is surrounded by air on all sides, not by copies of its edge."""
    got = resample(np.full((100, 100), 40, np.float32), (1, 1), field_mm=200, size=200)
    inside = np.zeros((200, 200), bool)
    inside[50:150, 50:150] = True
    assert (got[inside] == 40).all()
    assert (got[~inside] == AIR_HU).all()


def test_what_lies_outside_the_field_has_no_part():
    """Whatever surrounds the field, a table or another patient's arm, the network's view is the same."""
    hu = np.random.default_rng(0).normal(0, 100, (300, 300)).astype(np.float32)
    other = hu.copy()
    other[:50], other[-50:], other[:, :50], other[:, -50:] = 3000, 2000, 1000, -1000
    one, two = (resample(a, (1, 1), field_mm=200, size=64) for a in (hu, other))
    assert one.tobytes() == two.tobytes()
    assert (
        resample(hu, (1, 1), field_mm=202, size=64).tobytes()
        != resample(other, (1, 1), field_mm=202, size=64).tobytes()
    )


@pytest.mark.parametrize("spacing", [(0.25, 0.25), (0.25, 1.5), (1.5, 0.25)])
def test_thin_blood_keeps_its_share_when_a_slice_shrinks(spacing):
    """A line one pixel thin lends its mean to the network's pixels wherever it lies; none falls between two of them."""
    height, width = (round(FIELD / s) for s in spacing)
    across = int(spacing[0] > spacing[1])  # the axis with many pixels, the one that shrinks
    for row in range(200, 210):
        line = np.zeros((height, width), np.float32)
        np.moveaxis(line, across, 0)[row] = 80
        got = resample(line, spacing, field_mm=FIELD, size=200)
        assert got.mean() == pytest.approx(line.mean(), rel=1e-3)


def test_a_slice_is_neither_turned_nor_mirrored():
    """Rows stay rows and left stays left: four corners of different HU come out in their corners."""
    hu = np.zeros((200, 200), np.float32)
    hu[:100, :100], hu[:100, 100:], hu[100:, :100], hu[100:, 100:] = 10, 20, 30, 40
    got = resample(hu, (1, 1), field_mm=200, size=50)
    assert [got[0, 0], got[0, -1], got[-1, 0], got[-1, -1]] == [10, 20, 30, 40]


@pytest.mark.parametrize("field_mm", [100, 200])
def test_the_slice_itself_is_left_alone(field_mm):
    """The result shares no memory with the slice, even where nothing has to be resampled."""
    hu = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    before = hu.copy()
    got = resample(hu, (1, 1), field_mm=field_mm, size=100)
    assert not np.shares_memory(got, hu)
    got[:] = -1
    assert (hu == before).all()


# ---- neighbours ----


@given(n=st.integers(1, 9), neighbours=st.lists(st.integers(-12, 12), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_neighbours_are_the_slices_beside_with_the_ends_repeated(n, neighbours):
    """Channel j of slice i is slice i + offset j; past its ends the end slice stands in, for N = 1 too."""
    hu = torch.arange(n, dtype=torch.float32)[:, None, None].expand(n, 2, 3)
    got = with_neighbours(hu, neighbours)
    assert got.shape == (n, len(neighbours), 2, 3)
    for i in range(n):
        for j, offset in enumerate(neighbours):
            assert (got[i, j] == min(max(i + offset, 0), n - 1)).all()


def test_air_lies_beyond_the_ends_where_it_is_asked_for():
    """What is within the study is the same as without it."""
    hu = torch.tensor([10.0, 20.0, 30.0])[:, None, None]
    got = with_neighbours(hu, (-2, 0, 1), air_beyond=True)[..., 0, 0]
    assert got.tolist() == [[AIR_HU, 10, 20], [AIR_HU, 20, 30], [10, 30, AIR_HU]]
    assert (apply(torch.full((1, 1, 1, 1), float(AIR_HU)), [(40, 80), (600, 2800)]) == 0).all()


def test_the_neighbours_of_a_known_study():
    """Three slices with their neighbours, written out."""
    got = with_neighbours(torch.tensor([10.0, 20.0, 30.0])[:, None, None], (-1, 0, 1))
    assert got[..., 0, 0].tolist() == [[10, 10, 20], [10, 20, 30], [20, 30, 30]]


# ---- windows ----

windows = st.lists(st.tuples(st.integers(-500, 700), st.integers(1, 3000)), min_size=1, max_size=4)


@given(
    windows_hu=windows,
    shape=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_windows_are_the_plain_formula_in_the_documented_order(windows_hu, shape, seed):
    """Every channel is clip((HU - (level - width/2)) / width, 0, 1), windows running within each neighbour."""
    m, j, s = shape
    hu = np.random.default_rng(seed).uniform(-1024, 3000, (m, j, s, s)).astype(np.float32)
    got = apply(torch.from_numpy(hu), windows_hu).numpy()
    planes = [
        np.clip((hu[:, neighbour].astype(np.float64) - (level - width / 2)) / width, 0, 1)
        for neighbour in range(j)
        for level, width in windows_hu
    ]
    expected = np.stack(planes, axis=1)
    assert got.shape == expected.shape == (m, j * len(windows_hu), s, s)
    # float32: HU / width + 0.5 loses as many digits as the narrowest window is far from the HU.
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert ((got >= 0) & (got <= 1)).all()


def test_the_default_windows_at_their_edges():
    """Level - width/2 and below are 0, the level is one half, level + width/2 and above 1, for each default window."""
    pairs = Slices().windows_hu
    for channel, (level, width) in enumerate(pairs):
        hu = torch.tensor([-1024, level - width / 2, level, level + width / 2, 3071], dtype=torch.float32)
        got = apply(hu[:, None, None, None], pairs)[:, channel, 0, 0]
        low = 0 if level - width / 2 >= -1024 else (-1024 - level) / width + 0.5
        assert got.tolist() == pytest.approx([max(low, 0), 0, 0.5, 1, 1], abs=1e-6)


def test_windows_do_not_alter_their_input():
    """The HU are still there after windowing, since the neighbours of the next slice need them."""
    hu = torch.full((1, 1, 2, 2), 40.0)
    for pairs in ([(50, 80)], [(40, 80), (80, 200)]):
        apply(hu, pairs)
        assert (hu == 40).all()


def test_neighbours_then_windows_give_the_networks_channels():
    """For 2.5D input the six channels are: slice before in both windows, slice itself, slice after."""
    hu = torch.tensor([0.0, 40.0, 80.0])[:, None, None]
    got = apply(with_neighbours(hu, (-1, 0, 1)), [(40, 80), (40, 160)])
    assert got[1, :, 0, 0].tolist() == pytest.approx([0, 0.25, 0.5, 0.5, 1, 0.75])

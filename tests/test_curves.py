"""The picture of a training: an image that any viewer opens, with every fold's losses where they belong."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import colors, image

from ich_seq.curves import draw_curves

WATCHED = "the fold held out"


def rows(learnt: list[float], watched: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": i + 1, "learnt_loss": a, "watched_loss": b}
        for i, (a, b) in enumerate(zip(learnt, watched, strict=True))
    ]


def flat(loss: float, epochs: int = 5) -> list[dict[str, float]]:
    return rows([loss] * epochs, [loss] * epochs)


def picture(png: bytes) -> np.ndarray:
    return image.imread(io.BytesIO(png), format="png")


def of_colour(seen: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that have exactly this colour."""
    return np.nonzero((np.abs(seen[..., :3] - colors.to_rgb(name)) < 0.01).all(axis=-1))


def test_it_is_a_picture_that_can_be_read():
    """PNG of the documented size, opaque, with more on it than paper."""
    png = draw_curves({0: rows([0.5, 0.4, 0.3], [0.6, 0.45, 0.4])}, WATCHED)
    seen = picture(png)
    assert png.startswith(b"\x89PNG\r\n")
    assert seen.shape == (540, 840, 4)
    assert (seen[..., 3] == 1).all()
    assert seen[..., :3].std() > 0.05


def test_the_same_input_gives_the_same_bytes():
    """Whatever was drawn in between and in whatever order the folds come, so that a run repeated is the same run."""
    curves = {fold: rows([0.5, 0.4 - fold / 20], [0.6, 0.45 + fold / 20]) for fold in range(3)}
    first = draw_curves(curves, WATCHED)
    draw_curves({0: flat(1)}, "something else")
    assert draw_curves(curves, WATCHED) == first
    assert draw_curves(dict(reversed(curves.items())), WATCHED) == first


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["learnt_loss", "watched_loss", "epoch", "fold", "watched"])
def test_whatever_is_told_shows(changed):
    """Another loss, epoch, fold number or watched set makes another picture."""
    falling = [0.5, 0.4, 0.35, 0.34]
    curves, other = ({0: rows(falling, falling), 1: rows(falling[1:], falling[1:])} for _ in range(2))
    if changed in curves[0][0]:
        other[1][2][changed] += 0.1
    elif changed == "fold":
        other[7] = other.pop(1)
    watched = "the fold that stops the training" if changed == "watched" else WATCHED
    assert draw_curves(other, watched) != draw_curves(curves, WATCHED)


def levels(seen: np.ndarray, name: str) -> list[float]:
    """Where lines of this colour run level across the picture, from above, in pixels from its top."""
    down, _ = of_colour(seen, name)
    rows_of = np.flatnonzero(np.bincount(down) > 300)  # the legend may hide a part
    return [float(run.mean()) for run in np.split(rows_of, np.flatnonzero(np.diff(rows_of) > 1) + 1)]


def test_losses_lie_where_the_axes_say():
    """Folds of a constant 0.4, 0.2 and 0.1 are three level lines, their heights above the axis at 0 as 4:2:1."""
    seen = picture(draw_curves({0: flat(0.4), 1: flat(0.2), 2: flat(0.1)}, WATCHED))
    frame = np.flatnonzero((seen[..., :3].max(axis=-1) < 0.5).sum(axis=1) > 600)
    heights = np.array([frame.max() - level for fold in range(3) for level in levels(seen, f"C{fold}")])
    np.testing.assert_allclose(heights / heights[2], [4, 2, 1], rtol=0.03)


def test_more_folds_than_colours_are_drawn():
    """Of twelve folds the last two have the colours of the first two, and lines of their own."""
    seen = picture(draw_curves({fold: flat(0.1 + fold / 50) for fold in range(12)}, WATCHED))
    assert [len(levels(seen, f"C{number}")) for number in range(10)] == [2, 2] + [1] * 8


# Shows a fault of the package: a line through one point is invisible, so after one epoch the picture is empty.
@pytest.mark.parametrize("which", ["learnt_loss", "watched_loss"])
def test_a_single_epoch_can_be_seen(which):
    """The losses of a training of one epoch are marks: where they lie can be seen."""
    one, two = {0: flat(0.4, 1), 1: flat(0.1, 1)}, {0: flat(0.4, 1), 1: flat(0.1, 1)}
    two[1][0][which] = 0.2  # the axes are those of fold 0
    assert draw_curves(one, WATCHED) != draw_curves(two, WATCHED)

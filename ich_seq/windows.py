"""Hounsfield units into what the network sees: one physical scale, then windows, each in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ich_seq.config import AIR_HU


def resample(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float], *, field_mm: float, size: int
) -> NDArray[np.float32]:
    """Resample the central `field_mm` x `field_mm` of a slice (H, W) to (S, S), still HU.

    What lies outside the image is air. One pixel is then `field_mm / size` mm whatever the matrix and
    pixel spacing were: a published model lost 27 points of specificity to images of another matrix.
    Areas are averaged when shrinking, so thin blood keeps its share of a pixel.
    """
    field = _centred(hu, round(field_mm / spacing_mm[0]), round(field_mm / spacing_mm[1]))
    rows, columns = (cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR for side in field.shape)
    if rows != columns:  # OpenCV averages areas only where both sides shrink
        field = np.asarray(cv2.resize(field, (field.shape[1], size), interpolation=rows), np.float32)
    return np.asarray(cv2.resize(field, (size, size), interpolation=columns))


def _centred(hu: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return the central (height, width) of a slice, cropped or padded with air."""
    top, left = (height - hu.shape[0]) // 2, (width - hu.shape[1]) // 2
    inner = hu[max(0, -top) : max(0, -top) + height, max(0, -left) : max(0, -left) + width]
    if inner.shape == (height, width):
        return inner
    padded = np.full((height, width), AIR_HU, np.float32)
    top, left = max(0, top), max(0, left)
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def with_neighbours(hu: Tensor, neighbours: Sequence[int]) -> Tensor:
    """Give each of N sorted slices (N, S, S) its neighbours: (N, len(neighbours), S, S).

    `neighbours` are offsets in the order of the channels, e.g. (-1, 0, 1) for 2.5D; the study's first
    and last slice stand in for those beyond its ends.
    """
    index = torch.arange(len(hu), device=hu.device)[:, None] + torch.tensor(neighbours, device=hu.device)
    return hu[index.clamp(0, len(hu) - 1)]


def apply(hu: Tensor, windows_hu: Sequence[tuple[float, float]]) -> Tensor:
    """Show HU (M, J, S, S) through windows of (level, width): (M, C, S, S) in [0, 1], C = J x windows.

    Channels run window by window within each neighbour. HU at level - width/2 and below are 0, at
    level + width/2 and above 1.
    """
    level, width = torch.tensor(windows_hu, dtype=hu.dtype, device=hu.device).T[..., None, None]
    shown = torch.addcmul(0.5 - level / width, hu[:, :, None], 1 / width).clamp_(0, 1)
    return shown.flatten(1, 2)

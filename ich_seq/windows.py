"""Hounsfield units into what the network sees: one physical scale, then windows, each in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
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
    by_row, by_column = (_shares(n, step, field_mm, size) for n, step in zip(hu.shape, spacing_mm, strict=True))
    fewer_rows = by_row @ (hu - np.float32(AIR_HU))  # above air, so that what is outside adds exactly nothing
    resampled = cv2.transpose(by_column @ cv2.transpose(fewer_rows))
    return np.asarray(np.add(resampled, np.float32(AIR_HU), out=resampled))


@lru_cache(maxsize=64)
def _shares(pixels: int, spacing_mm: float, field_mm: float, size: int) -> csr_array:
    """Return what each pixel of a line of the image gives to each one of the field around its middle, (S, pixels).

    As a sparse matrix, since a product with it takes a third of the time of OpenCV's INTER_AREA.
    """
    side_mm = field_mm / size
    edges = (np.arange(pixels + 1) - pixels / 2) * spacing_mm
    wanted = ((np.arange(size + 1) - size / 2) * side_mm)[:, None]
    if side_mm >= spacing_mm:  # shares of the area
        overlap = np.minimum(wanted[1:], edges[1:]) - np.maximum(wanted[:-1], edges[:-1])
        shares = overlap.clip(0) / side_mm
    else:  # between the two nearest pixels
        apart = np.abs((wanted[1:] + wanted[:-1]) - (edges[1:] + edges[:-1])) / 2
        shares = (1 - apart / spacing_mm).clip(0)
    return csr_array(shares.astype(np.float32))


def with_neighbours(hu: Tensor, neighbours: Sequence[int], *, air_beyond: bool = False) -> Tensor:
    """Give each of N sorted slices (N, S, S) its neighbours: (N, len(neighbours), S, S).

    `neighbours` are offsets in the order of the channels, e.g. (-1, 0, 1) for 2.5D; the study's first
    and last slice stand in for those beyond its ends, or with `air_beyond` slices of air.
    """
    index = torch.arange(len(hu), device=hu.device)[:, None] + torch.tensor(neighbours, device=hu.device)
    within = index.clamp(0, len(hu) - 1)
    shown = hu[within]
    return torch.where((index == within)[..., None, None], shown, AIR_HU) if air_beyond else shown


def apply(hu: Tensor, windows_hu: Sequence[tuple[float, float]]) -> Tensor:
    """Show HU (M, J, S, S) through windows of (level, width): (M, C, S, S) in [0, 1], C = J x windows.

    Channels run window by window within each neighbour. HU at level - width/2 and below are 0, at
    level + width/2 and above 1.
    """
    level, width = torch.tensor(windows_hu, dtype=hu.dtype, device=hu.device).T[..., None, None]
    shown = torch.addcmul(0.5 - level / width, hu[:, :, None], 1 / width).clamp_(0, 1)
    return shown.flatten(1, 2)

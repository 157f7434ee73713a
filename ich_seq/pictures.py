"""Slices as pictures for pages: Hounsfield units through a window, and what a network looked at laid over them."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

WINDOWS_HU: dict[str, tuple[float, float]] = {
    "brain": (40, 80),
    "subdural": (80, 200),
    "soft tissue": (40, 380),
    "bone": (600, 2800),
}
"""Level and width of the windows in which head CT is read (the guide's, and those of the challenge's winners)."""

READ_IN = ("brain", "subdural")
"""Windows in which blood is looked for; single slices are shown in both."""

PICTURE_SIDE = 288
SHADE_RGB = (255, 90, 0)
MOST_SHADE = 0.55


def shown(hu: NDArray[np.float32], window_hu: tuple[float, float]) -> NDArray[np.uint8]:
    """Return a slice (H, W) of HU as grey, (H, W): black at level - width/2 and below, white above level + width/2."""
    level, width = window_hu
    return np.asarray(np.rint(((hu - level) / width + 0.5).clip(0, 1) * 255), np.uint8)


def read_in_windows(hu: NDArray[np.float32]) -> dict[str, NDArray[np.uint8]]:
    """Return a slice (H, W) of HU as grey, (H, W), by the names of READ_IN."""
    return {name: shown(hu, WINDOWS_HU[name]) for name in READ_IN}


def sigmoid_shown(hu: NDArray[np.float32], window_hu: tuple[float, float]) -> NDArray[np.uint8]:
    """Return a slice (H, W) of HU as grey, (H, W), by a sigmoid in place of a ramp: nothing is cut off.

    As DICOM has it for VOI LUT Function SIGMOID (PS3.3 C.11.2.1.3.1).
    """
    level, width = window_hu
    return np.asarray(np.rint(255 * expit(4 * (hu - level) / width)), np.uint8)


def overlaid(grey: NDArray[np.uint8], shade: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return grey (H, W) with a shade (h, w) of any size, 0 to 1, laid over it in one colour, (H, W, 3) RGB.

    Only `where` (H, W) says so; 0 leaves the slice as it is.
    """
    size = grey.shape[1], grey.shape[0]
    strength = cv2.resize(shade, size, interpolation=cv2.INTER_LINEAR) * where
    share = MOST_SHADE * strength.clip(0, 1)[..., None]
    mixed = (1 - share) * grey[..., None] + share * np.array(SHADE_RGB, np.float32)
    return np.rint(mixed).astype(np.uint8)


JPEG_QUALITY = 85


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture, grey (H, W) or RGB (H, W, 3), as a PNG that stands in the page itself, pixel by pixel."""
    return "data:image/png;base64," + _encoded(picture, ".png", [])


def jpeg_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture as `data_uri` does, but as JPEG: a third of the bytes, to look at only."""
    return "data:image/jpeg;base64," + _encoded(picture, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _encoded(picture: NDArray[np.uint8], suffix: str, options: list[int]) -> str:
    ordered = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, ordered, options)
    if not done:
        raise ValueError(f"OpenCV makes no {suffix} of a picture of shape {picture.shape}")
    return base64.b64encode(data.tobytes()).decode("ascii")

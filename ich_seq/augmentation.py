"""Slices as they might also have been taken: shifted, turned, mirrored, by another scanner, through another window.

Everything random comes from the generator that is passed in, so a sample is known by its seed, whoever
draws it: a resumed run and any number of workers or ranks see the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from ich_seq.config import AIR_HU, Augment

ERASED_AREA = (0.02, 0.15)
ERASED_ASPECT = (0.4, 2.5)
"""Area of the erased rectangle as a share of the slice, and its height over its width (Zhong et al. 2020)."""

LEAST_BLUR = 0.2
"""Below this standard deviation, in pixels, a Gaussian gives a pixel's neighbours nothing (e^-12.5)."""


def vary_slice(hu: Tensor, options: Augment, rng: np.random.Generator) -> Tensor:
    """Mirror, turn, scale and shift a slice with its neighbours, (J, S, S) HU, all J alike.

    What comes in from outside is air. `turn` shows the neighbours in reverse order, as a study read from
    the head would (RSNA 2019, 1st place).
    """
    if rng.random() < options.flip:
        hu = functional.horizontal_flip(hu)
    if rng.random() < options.turn:
        hu = hu.flip(0)
    size = hu.shape[-1]
    angle = rng.uniform(-options.rotate_deg, options.rotate_deg)
    shift = (rng.uniform(-options.shift, options.shift, 2) * size).tolist()
    scale = math.exp(rng.uniform(-options.scale, options.scale))
    return move(hu, angle_deg=angle, shift_pixels=shift, scale=scale)


def move(
    hu: Tensor, *, angle_deg: float = 0.0, shift_pixels: Sequence[float] = (0.0, 0.0), scale: float = 1.0
) -> Tensor:
    """Turn slices (..., S, S) HU about their centre, scale and shift them, bilinearly; air comes in."""
    moved: Tensor = functional.affine(  # with `fill` torchvision weighs the edge twice, and air gets a bright rim
        hu - AIR_HU,
        angle=angle_deg,
        translate=list(shift_pixels),
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    return moved + AIR_HU


def vary_scanner(hu: Tensor, options: Augment, rng: np.random.Generator, *, pixel_mm: float) -> Tensor:
    """Show slices (J, S, S) HU as another scanner might: softer, then noisier, each by up to what is allowed.

    The noise is white, and its own in each slice. It also hides that HU were rounded, as those of pictures are.
    """
    if options.blur_mm:
        hu = _softened(hu, rng.uniform(0, options.blur_mm) / pixel_mm)
    if options.noise_hu:
        sigma = rng.uniform(0, options.noise_hu)
        hu = hu + sigma * torch.from_numpy(rng.standard_normal(hu.shape, np.float32))
    return hu


def _softened(hu: Tensor, sigma_pixels: float) -> Tensor:
    """Blur by a Gaussian, but for one that no pixel would notice."""
    if sigma_pixels < LEAST_BLUR:
        return hu
    reach = math.ceil(3 * sigma_pixels)
    softened: Tensor = functional.gaussian_blur(hu, [2 * reach + 1] * 2, [sigma_pixels] * 2)
    return softened


def vary_windows(
    windows_hu: Sequence[tuple[float, float]], options: Augment, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Move each window (level, width) by up to `options.window` of its width and stretch it by as much."""
    return [
        (
            level + width * rng.uniform(-options.window, options.window),
            width * math.exp(rng.uniform(-options.window, options.window)),
        )
        for level, width in windows_hu
    ]


def erase(shown: Tensor, options: Augment, rng: np.random.Generator) -> Tensor:
    """Blank a random rectangle of a windowed slice (C, S, S), with probability `options.erase`."""
    if rng.random() >= options.erase:
        return shown
    size = shown.shape[-1]
    area = rng.uniform(*ERASED_AREA) * size**2
    aspect = math.exp(rng.uniform(*np.log(ERASED_ASPECT)))
    height, width = (min(size, max(1, round(side))) for side in (math.sqrt(area * aspect), math.sqrt(area / aspect)))
    top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
    erased: Tensor = functional.erase(shown, top, left, height, width, torch.zeros(1))
    return erased

"""Spoilt compressed frames: an image of the header's shape comes of each, or a refusal.

`codec_mutant(seed, number, sound_frames(seed, shared))` makes a mutant anew.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from pydicom import dcmread
from pydicom.encaps import generate_frames

from attacks.byte_mutators import STREAM_CHANGES
from attacks.dicom_elements import HTJ2K, PIXEL_DATA, UNDEFINED, Element, encapsulated
from attacks.encoders import ENCODERS, Stored, made_here
from attacks.plain_dicom import Draft, Format, sound_draft, written
from attacks.proc import peak_mb
from attacks.verdicts import ReadHeader, ReadPixels, Verdict
from ich_seq.config import AIR_HU
from ich_seq.reasons import Refused, Unused

REAL_HTJ2K = Path("codecs_head_ct2", "CT2_HTJ2K")


@dataclass(frozen=True, slots=True)
class Frame:
    """A sound compressed image, and the draft of the file around it."""

    syntax: str
    content: bytes
    draft: Draft


def picture(rows: int, columns: int, bits: int = 16, seed: int = 0) -> Stored:
    """Return stored values (H, W) as of a head: a noisy disc in air."""
    y, x = np.mgrid[:rows, :columns]
    inside = np.hypot(y / rows - 0.5, x / columns - 0.5) < 0.4
    noise = np.random.default_rng(seed).normal(0, 8, (rows, columns))
    return np.clip(np.where(inside, 1060, 24) + noise, 0, (1 << bits) - 1).astype(np.uint16)


def sound_frames(seed: int, shared: Path) -> tuple[Frame, ...]:
    """Return one frame of each codec that can be had: made here, but HTJ2K, which is a real one."""
    made = [syntax for syntax in ENCODERS if syntax != HTJ2K and made_here(syntax)]
    stored = picture(64, 48, seed=seed)
    frames = [_frame(syntax, ENCODERS[syntax](stored, 16), Format(64, 48)) for syntax in made]
    real = shared / REAL_HTJ2K
    if real.exists() and made_here(HTJ2K):
        (content,) = generate_frames(dcmread(real).PixelData, number_of_frames=1)
        frames.append(_frame(HTJ2K, content, Format(512, 512, signed=True)))
    return tuple(frames)


def _frame(syntax: str, content: bytes, form: Format) -> Frame:
    return Frame(syntax, content, sound_draft(syntax, form, encapsulated(content)))


def codec_mutant(seed: int, number: int, frames: Sequence[Frame]) -> bytes:
    """Return a file whose frame, or rarely the items that hold it, is spoilt in one to three ways."""
    rng = Random(f"codec {seed} {number}")
    frame = frames[number % len(frames)]
    whole = rng.random() < 0.05
    content = encapsulated(frame.content).value if whole else frame.content
    for change in rng.choices(STREAM_CHANGES, k=rng.choice([1, 1, 2, 3])):
        content = change(content, rng) if content else content
    pixels = Element(PIXEL_DATA, b"OB", content, UNDEFINED) if whole else encapsulated(content)
    return written(replace(frame.draft, elements=(*frame.draft.elements[:-1], pixels)))


def try_frame(
    seed: int, frames: Sequence[Frame], folder: Path, read: ReadHeader, read_pixels: ReadPixels, number: int
) -> Verdict:
    """Read header and pixels of one mutant."""
    path = folder / f"{os.getpid()}.dcm"
    path.write_bytes(codec_mutant(seed, number, frames))
    before_s, began = _reaped_s(), time.perf_counter()
    try:
        outcome, wrong = read_both(path, read, read_pixels)
    except Exception as escaped:
        outcome, wrong = "escaped", f"{type(escaped).__name__} escapes: {escaped}"
    seconds = time.perf_counter() - began
    return Verdict(outcome, seconds, wrong, _reaped_s() > before_s, peak_mb(os.getpid()))


def read_both(path: Path, read: ReadHeader, read_pixels: ReadPixels) -> tuple[str, str]:
    """Return the outcome of reading a file, and what is wrong with it."""
    header = read(path, path.name)
    if isinstance(header, Unused):
        return "refused undecoded", ""
    try:
        image = read_pixels(header)
    except Refused:
        return "refused by the decoder", ""
    if image.shape != (header.rows, header.columns) or image.dtype != np.float32:
        return "decoded", f"the image is {image.shape} of {image.dtype}"
    return "decoded", "" if np.isfinite(image).all() and image.min() >= AIR_HU else "it holds what are no HU"


def _reaped_s() -> float:
    """Return how long the processes computed that this one started and that are dead: the package decodes in one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

"""Compressed frames of another size, number of components or precision than their header says: none becomes an image.

A decoder goes by the codestream. Where both have as many pixels, whoever only counts them draws a wrong image in
silence. Every frame is told the truth about as well, and must come back bit for bit.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import prod
from pathlib import Path
from random import Random

import numpy as np

from attacks import Figures, Outcome, scaled
from attacks.codec_mutants import picture
from attacks.dicom_elements import HTJ2K, JPEG_2000, JPEG_LOSSLESS, RLE, encapsulated
from attacks.encoders import ENCODERS, NAMES, Stored, made_here, segment
from attacks.plain_dicom import Format, sound_draft, written
from attacks.verdicts import ReadHeader, ReadPixels, Verdict, read_header
from attacks.watch_trials import Fate, watched
from ich_seq.hounsfield import read_hounsfield
from ich_seq.reasons import Refused, Unused

Size = tuple[int, int]
LIMIT_S = 5.0
REFUSALS = ("codestream", "decode", "too_large")
INTERCEPT = -1024

SQUARE = [(128, 128), (64, 256), (256, 64), (32, 512), (512, 32)]
OBLONG = [(96, 64), (64, 96), (48, 128), (128, 48), (32, 192), (192, 32)]
OTHER = [(64, 64), (65, 64), (64, 65), (48, 64), (32, 64), (33, 33), (512, 512)]
SAME_AREA = [*permutations(SQUARE, 2), *permutations(OBLONG, 2)]
ANOTHER_AREA = [pair for pair in permutations(SQUARE + OBLONG + OTHER, 2) if prod(pair[0]) != prod(pair[1])]
THREE_COMPONENTS = [((64, 64), (64, 64)), ((32, 64), (96, 64)), ((64, 32), (64, 96)), ((40, 48), (120, 48))]
EIGHT_BITS = [((64, 64), (64, 64)), ((96, 64), (96, 64)), ((64, 128), (64, 64)), ((128, 64), (64, 64))]

LIES = {"same area": 40, "another area": 8, "components": 4, "precision": 4, "disguise": 4}
LIES_OF_RLE = {"same area": 40, "another area": 52, "components": 4, "precision": 4}
"""RLE states no size: its frames of the same area are tried besides, for a figure; 60 others must be refused."""


@dataclass(frozen=True, slots=True)
class Lie:
    """A frame and what is said of it: true and claimed rows and columns, what the codestream holds, Bits Stored.

    A "disguise" frame also holds what misleads whoever searches a codestream for its header.
    """

    syntax: str
    kind: str
    true: Size
    claimed: Size
    components: int = 1
    precision: int = 16
    bits: int = 16

    def __str__(self) -> str:
        held = f"{self.true[0]} x {self.true[1]} x {self.components} of {self.precision} bits"
        said = f"{self.claimed[0]} x {self.claimed[1]} x 1 of {self.bits}"
        return f"{NAMES[self.syntax]} ({self.kind}): {held} said to be {said}"


def run(
    work: Path,
    *,
    scale: float,
    seed: int = 0,
    read: ReadHeader = read_header,
    read_pixels: ReadPixels = read_hounsfield,
) -> Outcome:
    """Tell lies about frames of every codec, and the truth about each of these frames."""
    syntaxes = [syntax for syntax in ENCODERS if made_here(syntax)]
    lies = [lie for syntax in syntaxes for lie in told_lies(syntax, scale, seed)]
    truths = sorted({Lie(lie.syntax, "truth", lie.true, lie.true) for lie in lies}, key=str)
    said = (*lies, *truths)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        answers = watched(partial(try_lie, said, Path(folder), read, read_pixels), len(said), LIMIT_S)
    found = [(lie, answer) for lie, (_, answer) in zip(said, answers, strict=True)]
    failures = [f"{lie}: {wrong}" for lie, answer in found if (wrong := _wrong(lie, answer))]
    return Outcome(len(said), tuple(failures), _figures(found))


def told_lies(syntax: str, scale: float, seed: int) -> list[Lie]:
    """Return the lies to be told of one codec."""
    rng = Random(f"{syntax} {seed}")
    counts = LIES_OF_RLE if syntax == RLE else LIES
    return [
        lie for kind, count in counts.items() for lie in rng.sample(possible_lies(syntax, kind), scaled(count, scale))
    ]


def possible_lies(syntax: str, kind: str) -> list[Lie]:
    """Return all lies of a kind."""
    if kind == "components":
        made = [
            Lie(syntax, kind, *sizes, components=3, precision=bits) for sizes in THREE_COMPONENTS for bits in (8, 16)
        ]
    elif kind == "precision":
        made = [Lie(syntax, kind, *sizes, precision=8, bits=bits) for sizes in EIGHT_BITS for bits in (12, 16)]
    else:
        made = [Lie(syntax, kind, *sizes) for sizes in (ANOTHER_AREA if kind == "another area" else SAME_AREA)]
    return made


def try_lie(said: Sequence[Lie], folder: Path, read: ReadHeader, read_pixels: ReadPixels, number: int) -> Verdict:
    """Read a frame of which something is said."""
    lie = said[number]
    path = folder / f"{os.getpid()}.dcm"
    path.write_bytes(lying_file(lie))
    began = time.perf_counter()
    try:
        header = read(path, path.name)
        if isinstance(header, Unused):
            return Verdict(str(header.reason), time.perf_counter() - began)
        image = read_pixels(header)
    except Refused as refusal:
        return Verdict(str(refusal.reason), time.perf_counter() - began)
    right = lie.kind == "truth" and np.array_equal(image, _stored(lie).astype(np.float32) + INTERCEPT)
    return Verdict("right" if right else "image", time.perf_counter() - began)


def lying_file(lie: Lie) -> bytes:
    """Return a file that holds a frame and says of it what the lie is."""
    frame = ENCODERS[lie.syntax](_stored(lie), lie.precision)
    content = encapsulated(disguised(frame, lie) if lie.kind == "disguise" else frame)
    return written(sound_draft(lie.syntax, Format(*lie.claimed, bits=lie.bits), content))


def _stored(lie: Lie) -> Stored:
    """Return the values of a frame, (H, W) or (H, W, C); the one HTJ2K frame that is made here is a single grey."""
    if lie.syntax == HTJ2K:
        single = np.full(lie.true, 1 << (lie.precision - 1), np.uint16)
    else:
        single = picture(*lie.true, bits=lie.precision)
    return single if lie.components == 1 else np.stack([single] * lie.components, axis=2)


# ---- disguises


def disguised(frame: bytes, lie: Lie) -> bytes:
    """Return the same image with a header that agrees with the lie, where a decoder does not heed it."""
    rows, columns = lie.claimed
    if lie.syntax not in (JPEG_2000, HTJ2K):
        marker = 0xC3 if lie.syntax == JPEG_LOSSLESS else 0xF7
        claimed = segment(marker, struct.pack(">BHHB", lie.precision, rows, columns, 1) + b"\x01\x11\0")
        return frame[:2] + (claimed if rows > columns else segment(0xE5, claimed)) + frame[2:]
    sizes = struct.pack(">H8IH3B", 0, columns, rows, 0, 0, columns, rows, 0, 0, 1, lie.precision - 1, 1, 1)
    claimed = b"\xff\x4f" + segment(0x51, sizes)
    if rows > columns:
        return _in_jp2(frame, lie, claimed)
    after_siz = 4 + int.from_bytes(frame[4:6], "big")
    return frame[:after_siz] + segment(0x64, b"\0\1" + claimed) + frame[after_siz:]


def _in_jp2(frame: bytes, lie: Lie, claimed: bytes) -> bytes:
    """Return a codestream in a JP2 file (ITU T.800 annex I), as DICOM forbids and decoders accept."""
    header = struct.pack(">IIHBBBB", *lie.true, 1, lie.precision - 1, 7, 0, 0)
    colour = struct.pack(">BBBI", 1, 0, 0, 17)
    boxes = [(b"jP  ", b"\r\n\x87\n"), (b"ftyp", b"jp2 \0\0\0\0jp2 "), (b"free", claimed)]
    boxes += [(b"jp2h", _box(b"ihdr", header) + _box(b"colr", colour)), (b"jp2c", frame)]
    return b"".join(_box(name, body) for name, body in boxes)


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


# ---- what came of it


def tellable(lie: Lie) -> bool:
    """Return whether a frame can tell that a lie is one: RLE states nothing but how many bytes there are."""
    return lie.syntax != RLE or lie.kind != "same area"


def _wrong(lie: Lie, answer: Verdict | Fate) -> str:
    if isinstance(answer, Fate):
        return f"it {answer}" + (f" in {LIMIT_S:g} s" if answer == Fate.HUNG else "")
    if lie.kind == "truth":
        return "" if answer.outcome == "right" else f"the sound frame is not read right: {answer.outcome}"
    if answer.outcome in REFUSALS or not tellable(lie):
        return ""
    return "it became an image" if answer.outcome == "image" else f"it is refused as {answer.outcome}"


def _figures(found: Sequence[tuple[Lie, Verdict | Fate]]) -> Figures:
    told = [(lie, answer) for lie, answer in found if isinstance(answer, Verdict)]
    lies = [(lie, answer) for lie, answer in told if lie.kind != "truth"]
    figures: Figures = {"truths read right": sum(answer.outcome == "right" for _, answer in told)}
    for syntax, name in NAMES.items():
        own = Counter(answer.outcome for lie, answer in lies if lie.syntax == syntax and tellable(lie))
        figures |= {f"{name} lies": own.total(), f"{name} lies, refused": own.total() - own["image"]}
    untold = Counter(answer.outcome for lie, answer in lies if not tellable(lie))
    figures |= {
        "RLE lies of the same area, which RLE cannot tell": untold.total(),
        "of these refused": untold.total() - untold["image"],
    }
    return figures | {"worst seconds": round(max((answer.seconds for _, answer in told), default=0.0), 3)}

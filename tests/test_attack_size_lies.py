"""tools/attacks/size_lies.py: a slice of the attack finds nothing, and it finds what is there to find."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import pytest
from attacks import size_lies
from attacks.dicom_elements import JPEG_2000, JPEG_LS, RLE
from attacks.encoders import ENCODERS, jpeg_lossless, made_here
from attacks.size_lies import told_lies
from attacks.verdicts import read_header

from ich_seq.dicom import SliceHeader
from ich_seq.reasons import Reason, Refused, Unused

SLICE = 0.025


def evasive(path: Path, file: str) -> SliceHeader | Unused:
    """Refuse JPEG-LS for a reason that has nothing to do with it."""
    header = read_header(path, file)
    evaded = isinstance(header, SliceHeader) and header.transfer_syntax == JPEG_LS
    return Unused(file, Reason.GEOMETRY, "No.") if evaded else header


def blind(header: SliceHeader) -> np.ndarray:
    """Refuse all JPEG 2000, and give others an image of the header's shape, whatever the frame holds."""
    if header.transfer_syntax == JPEG_2000:
        raise Refused(Reason.DECODE, "No.")
    return np.zeros((header.rows, header.columns), np.float32)


@pytest.mark.slow
def test_no_lie_of_a_slice_of_the_attack_is_believed(tmp_path):
    """Frames of another size are refused; the same frames, rightly described, come back bit for bit."""
    outcome = size_lies.run(tmp_path, scale=SLICE)
    assert outcome.failures == ()
    made = sum(map(made_here, ENCODERS))
    assert outcome.trials > 4 * made
    assert outcome.figures["truths read right"] >= made


def test_a_reader_that_only_counts_pixels_or_refuses_everything_is_found(tmp_path):
    """An image is not the right image, and refusing sound frames is no safety."""
    told = "\n".join(size_lies.run(tmp_path, scale=SLICE, read=evasive, read_pixels=blind).failures)
    assert "RLE (another area)" in told  # the gate knows no size of theirs
    assert "it became an image" in told
    assert "RLE (truth)" in told
    assert "not read right: image" in told
    assert "JPEG 2000 (truth)" in told
    assert "not read right: decode" in told
    if made_here(JPEG_LS):
        assert "not read right: geometry" in told


@pytest.mark.parametrize("syntax", [syntax for syntax in ENCODERS if syntax != RLE and made_here(syntax)])
def test_no_disguise_passes_the_gate(tmp_path, syntax):
    """A header hidden in a comment, a box or before the true one misleads no one: the file is not even opened again."""
    path = tmp_path / "a.dcm"
    for lie in size_lies.possible_lies(syntax, "disguise"):
        path.write_bytes(size_lies.lying_file(lie))
        header = read_header(path, path.name)
        assert isinstance(header, Unused)
        assert header.reason == "codestream"


@pytest.mark.parametrize("syntax", ENCODERS)
def test_sixty_lies_that_can_be_told_are_told_of_each_codec(syntax):
    """Most are of the same area, which counting pixels does not find; RLE states none, so its 60 are of another."""
    lies = told_lies(syntax, 1.0, 0)
    assert sum(map(size_lies.tellable, lies)) == 60
    same = Counter(prod(lie.true) == prod(lie.claimed) for lie in lies if lie.components == 1 and lie.precision > 8)
    assert same[True] >= 40
    assert len(lies) == (100 if syntax == RLE else 60)


def test_jpeg_lossless_frames_hold_every_difference_there_is():
    """The encoder codes differences of all 17 categories, the one of 32768 among them."""
    libjpeg = pytest.importorskip("libjpeg")
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 1 << 16, (40, 30)).astype(np.uint16)
    stored[::2] >>= rng.integers(0, 16, (20, 30)).astype(np.uint16)
    stored[1, :4] = [0, 32768, 0, 65535]
    np.testing.assert_array_equal(libjpeg.decode(jpeg_lossless(stored, 16)), stored)

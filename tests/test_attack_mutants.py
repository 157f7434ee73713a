"""tools/attacks/mutants.py: a slice of the attack finds nothing, and it finds what is there to find."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from attacks import mutants
from attacks.codec_mutants import codec_mutant, sound_frames
from attacks.dicom_elements import DEFLATED, EXPLICIT, PIXEL_DATA, RLE, Element, even
from attacks.header_mutants import header_mutant, silent_use, sound_drafts
from attacks.oracle import read_strictly
from attacks.plain_dicom import written
from attacks.verdicts import read_header
from pydicom import dcmread

from ich_seq.dicom import SliceHeader
from ich_seq.reasons import Reason, Refused, Unused

SLICE = 0.004
TINY = 0.001


def careless(path: Path, file: str) -> SliceHeader | Unused:
    """Fill in what is missing by what usually stands there; let an exception escape where a file is no DICOM file."""
    result = read_header(path, file)
    if isinstance(result, SliceHeader) or result.reason not in (Reason.MISSING_TAG, Reason.NOT_DICOM):
        return result
    if result.reason == Reason.NOT_DICOM:
        raise ValueError("no marker")
    usual = path.with_name("usual.dcm")
    usual.write_bytes(written(sound_drafts()[1]))
    return read_header(usual, file)


def clumsy(header: SliceHeader) -> np.ndarray:
    """Give run-length slices a shape of its own; decode others in a process that ends of every frame."""
    if header.transfer_syntax == RLE:
        return np.zeros((99, 99), np.float32)
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    raise Refused(Reason.DECODE, "The decoder died.")


@pytest.fixture
def attack(tmp_path):
    """The attack on the package, or on a weakened one, without real files."""
    return lambda scale, **weakened: mutants.run(tmp_path, scale=scale, shared=tmp_path, **weakened)


@pytest.mark.slow
def test_no_mutant_of_a_slice_of_the_attack_does_harm(attack):
    """Hundreds of spoilt headers and frames: refused, or read as they say."""
    outcome = attack(SLICE)
    assert outcome.failures == ()
    assert outcome.trials == 560
    assert outcome.figures["header mutants"] == 400
    assert outcome.figures["headers as before"] > 50
    assert outcome.figures["headers refused: missing_tag"] > 50
    for outcome_of_a_frame in ("decoded", "refused by the decoder", "refused undecoded"):
        assert outcome.figures[f"JPEG 2000 {outcome_of_a_frame}"] > 2
    assert "HTJ2K" in outcome.figures["codecs skipped"]


@pytest.mark.slow
def test_a_reader_that_guesses_mistakes_shapes_and_lets_exceptions_escape_is_found(attack):
    """Each fault is told; the death of a decoding process is none, and counted."""
    outcome = attack(TINY, read=careless, read_pixels=clumsy)
    told = "\n".join(outcome.failures)
    assert told.count("it was read as") + told.count("it was used") > 10
    assert "ValueError escapes" in told
    assert "RLE mutant" in told
    assert "the image is (99, 99)" in told
    assert "JPEG 2000 mutant" not in told
    assert outcome.figures["JPEG 2000, decoding processes that died"] > 0


def test_a_mutant_can_be_made_again(tmp_path):
    """Seed and number are all there is to it."""
    frames = sound_frames(3, tmp_path)
    for number in range(50):
        assert header_mutant(3, number) == header_mutant(3, number)
        assert codec_mutant(3, number, frames) == codec_mutant(3, number, frames)
    assert len({header_mutant(3, number) for number in range(50)}) > 45


@pytest.mark.parametrize("number", range(len(sound_drafts())))
def test_the_oracle_agrees_with_pydicom_about_sound_files(number):
    """Both read the same of every kind of data set."""
    content = written(sound_drafts()[number])
    reading, dataset = read_strictly(content), dcmread(BytesIO(content))
    assert reading.decimals(0x00200032) == tuple(dataset.ImagePositionPatient)
    assert reading.decimals(0x00280030) == tuple(dataset.PixelSpacing)
    assert (reading.whole(0x00280010), reading.whole(0x00280011)) == (dataset.Rows, dataset.Columns)
    assert reading.whole(0x00280120) == dataset.get("PixelPaddingValue")
    assert reading.text(0x0020000D) == dataset.StudyInstanceUID
    assert reading.syntax == dataset.file_meta.TransferSyntaxUID
    if reading.syntax != DEFLATED:
        assert content[reading.pixel_data.start :][:8] == dataset.PixelData[:8]


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [
        (0x00281053, b"2 ", "twice"),
        (0x00280008, b"2x", "no number"),
        (0x00280120, b"123", "no number"),
        (0x00280002, b"\x03\0", "(0028,0002) is 3"),
    ],
)
def test_the_oracle_objects_to_what_a_careless_reader_takes(tmp_path, tag, value, said):
    """A header that was read before its file was spoilt stands for a reader that did not look."""
    draft = sound_drafts()[1]
    assert draft.syntax == EXPLICIT
    path = tmp_path / "a.dcm"
    path.write_bytes(written(draft))
    header = read_header(path, "a.dcm")
    assert silent_use(header, written(draft)) == ""
    kept = [element for element in draft.elements if element.tag != tag or "twice" in said]
    vr = {0x00281053: b"DS", 0x00280008: b"IS"}.get(tag, b"US")
    spoilt = Element(tag, vr, even(b"DS", value))
    content = written(replace(draft, elements=(spoilt, *kept)))
    assert said in silent_use(header, content)


def test_the_oracle_knows_where_pixels_begin_and_how_many_they_are(tmp_path):
    """Pixels of another length than the image, or read from elsewhere, are another image."""
    draft = sound_drafts()[1]
    path = tmp_path / "a.dcm"
    path.write_bytes(written(draft))
    header = read_header(path, "a.dcm")
    assert "begin at" in silent_use(replace(header, pixel_offset=header.pixel_offset - 4), written(draft))
    longer = Element(PIXEL_DATA, b"OW", draft.elements[-1].value * 2)
    assert "holds" in silent_use(header, written(replace(draft, elements=(*draft.elements[:-1], longer))))

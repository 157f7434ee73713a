"""Bad inputs in the values of their header: absurd numbers and hostile text."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from attacks.bad_case import ALTERED, USED, Case, one
from attacks.dicom_bytes import Value, named, slice_file


def values() -> list[Case]:
    """Return all cases of values."""
    return [*dimensions(), *geometry(), *character_sets()]


# ---- dimensions


def dimensions() -> Iterator[Case]:
    """Sizes, bits and frames of no CT slice."""
    family = "dimensions"
    for keyword in ("Rows", "Columns"):
        for number in (0, 1, 15, 4097, 32768, 65535):
            yield one(family, f"{number} {keyword}", slice_file(**{keyword: number}), "dimensions")
        for number in (31, 16):
            acceptable = ("pixel_data", ALTERED, USED) if keyword == "Columns" else ("pixel_data", ALTERED)
            yield one(family, f"{number} {keyword} of 32", slice_file(**{keyword: number}), *acceptable)
        for number in (33, 4096):
            yield one(family, f"{number} {keyword} of 32", slice_file(**{keyword: number}), "pixel_data")
        yield one(family, f"no {keyword}", slice_file(**{keyword: None}), "missing_tag")
    yield one(family, "4096 x 4096 of 32 x 32", slice_file(Rows=4096, Columns=4096), "pixel_data")
    yield one(family, "65535 x 65535", slice_file(Rows=65535, Columns=65535), "dimensions")
    tags: list[tuple[dict[str, Value], str]] = [
        *(({"BitsAllocated": bits}, "pixel_format") for bits in (0, 1, 8, 12, 24, 32, 64, 65535)),
        *(({"BitsStored": bits, "HighBit": bits - 1}, "pixel_format") for bits in (0, 1, 8, 11, 17, 65535)),
        *(({"HighBit": bit}, "pixel_format") for bit in (0, 7, 14, 16, 65535)),
        *(({"PixelRepresentation": number}, "pixel_format") for number in (2, 65535)),
        *(({"SamplesPerPixel": number}, "pixel_format") for number in (0, 2, 3, 4, 65535)),
        *(({"PhotometricInterpretation": name}, "pixel_format") for name in ("RGB", "YBR_FULL", "PALETTE COLOR", "?")),
        *(({keyword: None}, "missing_tag") for keyword in ("BitsAllocated", "BitsStored", "PixelRepresentation")),
        ({"HighBit": None}, USED),
        ({"SamplesPerPixel": None, "PhotometricInterpretation": None}, USED),
        ({"PhotometricInterpretation": "MONOCHROME1"}, USED),
        ({"BitsStored": 12, "HighBit": 11}, USED),
        ({"PlanarConfiguration": 1}, USED),
    ]
    for values, acceptable in tags:
        name = ", ".join(f"{keyword} {value}" for keyword, value in values.items())
        yield one(family, name, slice_file(**values), acceptable)


# ---- geometry and rescale

NO_NUMBERS = (
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "1e400",
    "abc",
    "0x10",
    "1,5",
    "1 2",
    "--1",
    "1_0",
    "\u0661",
    "\x1b[2J",
)
"""Texts that are no finite number to DICOM, though Python reads some of them as one."""


def geometry() -> Iterator[Case]:
    """Positions, orientations, spacings and rescales that are absent, not finite, absurd or of the wrong count."""
    family = "geometry"
    wanted = {
        "ImagePositionPatient": "{}\\-4\\10",
        "ImageOrientationPatient": "1\\0\\0\\0\\{}\\0",
        "PixelSpacing": "0.5\\{}",
    }
    reasons = dict.fromkeys(wanted, "geometry") | {"RescaleSlope": "rescale", "RescaleIntercept": "rescale"}
    for keyword, reason in reasons.items():
        for text in NO_NUMBERS:
            value = wanted.get(keyword, "{}").format(text)
            yield one(family, f"{keyword} {value!a}", slice_file(**{keyword: value}), reason)
        for value in (None, "", " ", "\0"):
            yield one(family, f"{keyword} {value!a}", slice_file(**{keyword: value}), "missing_tag")
        yield one(family, f"{keyword} of 20 values", slice_file(**{keyword: "\\".join(["1"] * 20)}), reason)
        yield one(family, f"{keyword} of a million digits", slice_file(**{keyword: "1" * 60_000}), reason)
    for keyword, value, *acceptable in (
        ("ImagePositionPatient", "1\\2", "geometry"),
        ("ImagePositionPatient", "1\\\\3", "geometry"),
        ("ImagePositionPatient", "0\\0\\100001", "geometry"),
        ("ImagePositionPatient", "-1e30\\0\\0", "geometry"),
        ("ImagePositionPatient", "-4.00\\ -4.0e0 \\+10", USED),
        ("ImageOrientationPatient", "0\\0\\0\\0\\0\\0", "geometry"),
        ("ImageOrientationPatient", "1\\0\\0\\1\\0\\0", "geometry"),
        ("ImageOrientationPatient", "1\\0\\0\\0.5\\0.866\\0", "geometry"),
        ("ImageOrientationPatient", "2\\0\\0\\0\\2\\0", "geometry"),
        ("ImageOrientationPatient", "1e-200\\0\\0\\0\\1e-200\\0", "geometry"),
        ("ImageOrientationPatient", "1e200\\0\\0\\0\\1e200\\0", "geometry"),
        ("ImageOrientationPatient", "0\\1\\0\\0\\0\\-1", "not_axial"),
        ("ImageOrientationPatient", "1\\0\\0\\0\\0\\-1", "not_axial"),
        ("ImageOrientationPatient", "1\\0\\0\\0\\0.695\\-0.719", "not_axial"),
        ("ImageOrientationPatient", "1\\0\\0\\0\\0.719\\-0.695", USED),
        ("ImageOrientationPatient", "-1\\0\\0\\0\\1\\0", USED),
        *(
            ("PixelSpacing", value, "geometry")
            for value in ("0\\0", "-0.5\\0.5", "1e-30\\1e-30", "0.09\\0.5", "5.1\\5.1")
        ),
        *(("PixelSpacing", value, "geometry") for value in ("0.5", "1e30\\0.5", "0.5\\0.5\\0.5")),
        *(("RescaleSlope", value, "rescale") for value in ("0", "-0", "0.0", "1e7", "-1e7", "1e-320", "1e-30", "1\\1")),
        ("RescaleSlope", "-1", ALTERED, "rescale"),
        *(("RescaleIntercept", value, "rescale") for value in ("1e7", "-1e7", "1e308", "0\\0")),
    ):
        yield one(family, f"{keyword} {value}", slice_file(**{keyword: value}), *acceptable)
    yield from _padding_values(family)


def _padding_values(family: str) -> Iterator[Case]:
    """A padding value that could be tissue, or that is none, punches no hole."""
    for name, value, vr, *refused in (
        ("of tissue", 1060, "SS"),
        ("of the other sign", 65535, "US"),
        ("that is empty", b"", "SS"),
        ("of four bytes", b"\x24\x04\0\0", "SL", "pixel_format"),
        ("that is a word", "air", "LO", "pixel_format"),
        ("that is not finite", "nan", "DS", "pixel_format"),
        ("that is huge", "1" * 5000, "IS", "pixel_format"),
        ("of two values", b"\x24\x04\x25\x04", "SS", "pixel_format"),
    ):
        raw = {"PixelPaddingValue": named("PixelPaddingValue", value, vr=vr)}
        yield one(family, f"a padding value {name}", slice_file(raw=raw), USED, *refused)


# ---- character sets

HOSTILE = {
    "a terminal's escape": "\x1b[2J\x1b]0;x\x07",
    "lines": "1\n2\r3",
    "a path": "../../etc/passwd",
    "a formula": "=cmd|' /C calc'!A0",
    "markup": "<script>alert(1)</script>",
    "a mark that turns the text": "1.2\u202e3",
    "an emoji": "1.2\U0001f600",
    "full-width digits": "\uff11.\uff12",
    "zero width": "1\u200b2",
    "a NUL inside": "1.2\x003",
    "high bytes": b"1.\xff\xfe\xc3\x28",
    "a broken surrogate": b"1.\xed\xa0\x80",
    "an escape of ISO 2022": b"\x1b$B1.2\x1b(B",
    "a blank inside": "1.2 3",
    "two values": "1.2\\1.3",
}
"""Texts that no UID is, and that a patient's text may hold."""


def character_sets() -> Iterator[Case]:
    """Texts in no character set, in the wrong one, or meant for a terminal, a path or a page."""
    family = "character sets"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        odd = {".": ".", "..": "..", "a dash first": "-1", "129 letters": "1" * 129, "60,000 letters": "1" * 60_000}
        for name, value in (HOSTILE | odd).items():
            yield one(family, f"{keyword}: {name}", slice_file(**{keyword: value}), "uid")
        for name, value in (("RSNA's", "ID_0f3a9c"), ("128 letters", "1" * 128), ("padded", b"1.2.5\0\0\0")):
            yield one(family, f"{keyword}: {name}", slice_file(**{keyword: value}), USED)
        yield one(family, f"{keyword}: zeros", slice_file(**{keyword: b"\0\0\0\0"}), "missing_tag")
    for keyword in ("PatientID", "PatientName", "Manufacturer", "ImageType"):
        for name, value in HOSTILE.items():
            yield one(family, f"{keyword}: {name}", slice_file(**{keyword: value}), USED)
    for keyword, name, value, reason in (
        ("Modality", "small letters", "ct", "not_ct"),
        ("Modality", "two values", "CT\\MR", "not_ct"),
        ("Modality", "UTF-16", "CT".encode("utf-16"), "not_ct"),
        ("Modality", "letters alike", "\u0421\u0422", "not_ct"),
        ("Modality", "zeros behind it", b"CT\0\0", USED),
        ("SOPClassUID", "escapes", "\x1b[2J", "not_ct"),
        ("SOPClassUID", "a blank behind it", "1.2.840.10008.5.1.4.1.1.2 ", USED),
    ):
        yield one(family, f"{keyword}: {name}", slice_file(**{keyword: value}), reason)
    for charset in (
        "ISO_IR 192",
        "GB18030",
        "ISO 2022 IR 87",
        "\\ISO 2022 IR 149",
        "utf8",
        "NONE\\OF\\THESE",
        "\x1b",
        "UTF-7",
    ):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            content = slice_file(syntax=syntax, SpecificCharacterSet=charset, PatientName=b"\x1b$B\xff\xfe^\xe9")
            yield one(family, f"character set {charset!a} in syntax {syntax}", content, USED)

"""Transfer syntaxes: which are read, and by which decoder."""

from __future__ import annotations

import re

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ich_seq.reasons import Reason, Refused

NATIVE: dict[str, str] = {
    ImplicitVRLittleEndian: "<",
    ExplicitVRLittleEndian: "<",
    ExplicitVRBigEndian: ">",
    DeflatedExplicitVRLittleEndian: "<",
}
"""Uncompressed transfer syntaxes and the byte order of their pixels."""

PLUGINS: dict[str, str] = {
    RLELossless: "pydicom",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    JPEGLossless: "pylibjpeg",
    JPEGLosslessSV1: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEGExtended12Bit: "pylibjpeg",
}
"""The decoder of each compressed syntax, chosen here and not by pydicom: with every plugin installed it
would take GDCM first, which aborts the process on damaged frames. Of a JPEG-LS frame that is cut short
pylibjpeg makes an image without a word, pyjpegls an error."""

NEEDS_JPEG_EXTRA = {JPEGLossless, JPEGLosslessSV1, JPEGExtended12Bit}
"""Syntaxes whose decoder is under the GPL and so not a hard dependency: pip install 'ich-seq[jpeg]'."""

SYNTAX_FORM = re.compile("[0-9.]{1,64}")


def readable_syntax(syntax: str) -> str:
    """Return a transfer syntax. Refused (TRANSFER_SYNTAX): one that is not read, or whose decoder is not installed."""
    if syntax in NATIVE:
        return syntax
    if syntax not in PLUGINS:
        named = syntax if SYNTAX_FORM.fullmatch(syntax) else "of that name"
        raise Refused(
            Reason.TRANSFER_SYNTAX, f"Transfer syntax {named} is not read; convert the file (dcmdjpeg, dcmconv)."
        )
    if PLUGINS[syntax] not in get_decoder(syntax).available_plugins:
        remedy = "pip install 'ich-seq[jpeg]'" if syntax in NEEDS_JPEG_EXTRA else "pip install ich-seq"
        raise Refused(Reason.TRANSFER_SYNTAX, f"No decoder for transfer syntax {syntax} is installed: {remedy}.")
    return syntax

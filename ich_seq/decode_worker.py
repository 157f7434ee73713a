"""The process in which compressed frames are decoded: `python -m ich_seq.decode_worker`, started by `decoding`.

It is told its limit of memory and the word to say once it is ready; then it reads requests from stdin and answers on
stdout. A message is four bytes with the length of its head, the head as JSON, and as many raw bytes as the head says.
Decoders are foreign code fed with foreign bytes: here they may run out of memory, hang or crash at the cost of a slice.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

RLE_PADDING_BYTES = 2
"""Some writers pad a plane so that it comes out longer by this."""


def main() -> None:
    """Answer requests until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the parent ends this process in its time
    _limit(resource.RLIMIT_AS, int(sys.argv[1]))
    _limit(resource.RLIMIT_CORE, 0)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(sys.argv[2].encode())
    answers.flush()
    while length := requests.read(4):
        request = json.loads(requests.read(int.from_bytes(length)))
        _answer(request, requests.read(request["bytes"]), answers)


def _limit(kind: int, most: int) -> None:
    """Set a limit, or the lower one that is set already; some systems have none for memory."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, most))


def _answer(request: dict[str, Any], frame: bytes, answers: BinaryIO) -> None:
    try:
        # default action: the kernel ends this process once it has computed for so long, whatever it is in
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        stored = _decoded(frame, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        head: dict[str, Any] = {"dtype": stored.dtype.str, "shape": stored.shape}
        body = stored.tobytes()
    except BaseException as error:  # some decoders' panics are no Exception
        head, body = {"error": type(error).__name__}, b""
    packed = json.dumps(head | {"bytes": len(body)}).encode()
    answers.write(len(packed).to_bytes(4) + packed + body)
    answers.flush()


def _decoded(frame: bytes, request: dict[str, Any]) -> NDArray[Any]:
    image: dict[str, Any] = {
        "rows": request["rows"],
        "columns": request["columns"],
        "bits_stored": request["bits_stored"],
        "pixel_representation": int(request["signed"]),
        "bits_allocated": 16,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
    }
    decoder, plugin = get_decoder(request["syntax"]), request["plugin"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stored, _ = decoder.as_array(encapsulate([frame]), raw=True, decoding_plugin=plugin, **image)
    _refuse_longer(said)
    return np.ascontiguousarray(stored)


def _refuse_longer(said: Sequence[warnings.WarningMessage]) -> None:
    """Raise ValueError for run-length planes that pydicom cut to the image's size: they are of another image."""
    for warning in said:
        lengths = re.search(r"RLE segment .* (\d+) vs\. (\d+) bytes", str(warning.message))
        if lengths and int(lengths[1]) - int(lengths[2]) > RLE_PADDING_BYTES:
            raise ValueError(str(warning.message))


if __name__ == "__main__":
    main()

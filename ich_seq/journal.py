"""A journal: JSON lines that are only ever added, each on the disk before anything else is done; and that of a watch.

A kill may tear the last line, which then never was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ich_seq.files import MAX_WHOLE_BYTES, append_line, open_file, parse_json, read_whole

BEGUN, ENDED, KEPT, SENDING, SENT = "begun", "ended", "kept", "sending", "sent"
"""What a watch notes of a study: begun and ended, kept as it was, on its way and arrived."""


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a journal's lines, whatever they hold; torn lines are none, nor is there a journal yet."""
    try:
        lines = read_whole(path).decode(errors="replace").splitlines()
    except OSError:  # none yet, or what is none
        return
    for line in lines:
        with suppress(ValueError):
            yield parse_json(line)


def _torn(path: Path) -> bool:
    """Tell whether a journal ends in the midst of a line."""
    with suppress(OSError), open_file(path, MAX_WHOLE_BYTES) as file:
        return file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
    return False


class Journal:
    """What a watch did with each study, by Study Instance UID and the key of the files that it then had.

    Each line is {"event", "study", "key", "at" (UTC)} and what more there is to tell. Kept in memory are the last key
    of each study and kind of event, and the numbers of patients. Raises OutputError if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.patients: dict[str, int] = {}
        self._keys: dict[tuple[str, str], str] = {}
        for row in read_lines(path):
            self._remember(row)
        if _torn(path):
            append_line(path, "")  # else the next line would go on with what a kill left of the last one

    def note(self, event: str, study: str, key: str, **more: Any) -> None:
        """Write a line and see it to the disk."""
        row = {
            "event": event,
            "study": study,
            "key": key,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **more,
        }
        append_line(self.path, json.dumps(row, sort_keys=True))
        self._remember(row)

    def key_of(self, event: str, study: str) -> str:
        """Return the key with which an event was last noted of a study, "" if it never was."""
        return self._keys.get((event, study), "")

    def number_of(self, patient_key: str) -> int:
        """Return the number of a patient, by a hash of their ID: what was noted of them, or the next that is free."""
        return self.patients.get(patient_key) or max(self.patients.values(), default=0) + 1

    def deliver(self, study: str, key: str, send: Callable[[bool], None]) -> None:
        """Send a study once: nothing is done if it was sent, and `send(unsure)` is told if it may have been.

        That is so when an earlier sending did not come to its end: only the receiver can tell whether it arrived.
        Passes on what `send` raises; it is then to be called again.
        """
        if self.key_of(SENT, study) == key:
            return
        unsure = self.key_of(SENDING, study) == key
        if not unsure:
            self.note(SENDING, study, key)
        send(unsure)
        self.note(SENT, study, key)

    def _remember(self, row: Any) -> None:
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("event", "study", "key")):
            return
        self._keys[row["event"], row["study"]] = row["key"]
        if isinstance(row.get("patient_key"), str) and type(row.get("patient")) is int:
            self.patients[row["patient_key"]] = row["patient"]

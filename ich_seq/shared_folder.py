"""One output folder held by all processes of a group, until another run takes it over.

OUT/.lock is held by the first process alone, as by a run of one. OUT/.turn names the run whose turn it is: a process of
an older run that nobody ended (its torchrun was killed, its machine was out of reach) finds another name there, or
none, and ends before it writes on.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ich_seq import OutputError
from ich_seq.distributed import Group
from ich_seq.files import locked_folder, read_whole, remove, write_bytes

TURN = ".turn"
MAX_TURN_BYTES = 64

LOCK_WAIT_S = 120.0
"""How long a group that torchrun started again waits for the lock of its dead predecessor: an NFS server keeps one for
its lease, 90 s by default, if the machine is gone with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The time in which a group may write to a folder; `name` is of this run alone, 16 hex digits."""

    folder: Path
    name: str
    group: Group

    def check(self) -> None:
        """Raise OutputError if another run has taken the folder over. A group of one has the lock to tell it."""
        if self.group.size > 1 and _written(self.folder) != self.name:
            raise OutputError(f"The run of this process has ended, or another has taken {self.folder} over.")


@contextmanager
def held_together(out: Path, group: Group) -> Iterator[Turn]:
    """Hold an output folder for a group, which all of it enter; create it, and sweep what a crash left half-written.

    Raises OutputError, in every process, if another run holds it.
    """
    with ExitStack() as held:
        yield Turn(folder=out, name=group.lead(lambda: _taken(out, group, held)), group=group)


def _taken(out: Path, group: Group, held: ExitStack) -> str:
    """Lock a folder and name whose turn it is."""
    again = group.size > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    held.enter_context(locked_folder(out, wait_s=LOCK_WAIT_S if again else 0))
    name = secrets.token_hex(8)
    if group.size > 1:
        write_bytes(out / TURN, name.encode())
    else:
        remove([out / TURN])
    held.callback(remove, [out / TURN])
    return name


def _written(folder: Path) -> str:
    """Return whose turn it is, as the folder says."""
    try:
        return read_whole(folder / TURN, MAX_TURN_BYTES).decode(errors="replace")
    except OSError:
        return ""

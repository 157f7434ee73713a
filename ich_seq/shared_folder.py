"""One output folder held by all processes of a group, until another run takes it over.

OUT/.lock is held by the first process alone, as by a run of one. OUT/.turn names the run whose turn it is: a process of
an older run that nobody ended (its torchrun was killed, its machine was out of reach) finds another name there, or
none, and ends before it writes on.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ich_seq import OutputError
from ich_seq.distributed import Group
from ich_seq.files import locked_folder, read_whole, remove, write_bytes

TURN = ".turn"
MAX_TURN_BYTES = 64

SEEN_S, LOOK_AGAIN_S = 90.0, 0.25
"""How long a process looks for what the first one wrote: NFS may show a folder as it was up to a minute ago."""

LOCK_WAIT_S = 120.0
"""How long a group that torchrun started again waits for the lock of its dead predecessor: an NFS server keeps one for
its lease, 90 s by default, if the machine is gone with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The time in which a group may write to a folder; `name` is of this run alone, 16 hex digits."""

    folder: Path
    name: str
    group: Group

    def begin(self) -> None:
        """Wait until this process sees that the turn is its group's. Raises OutputError if it does not in SEEN_S."""
        until = time.monotonic() + SEEN_S
        while self.group.size > 1 and _written(self.folder) != self.name:
            if time.monotonic() > until:
                raise OutputError(
                    f"{self.folder} is not the folder that the first process has under this name; all must share it."
                )
            time.sleep(LOOK_AGAIN_S)

    def check(self) -> None:
        """Raise OutputError if another run has taken the folder over. A group of one has the lock to tell it."""
        if self.group.size > 1 and _written(self.folder) != self.name:
            raise OutputError(f"The run of this process has ended, or another has taken {self.folder} over.")


@contextmanager
def held_together(out: Path, group: Group) -> Iterator[Turn]:
    """Hold an output folder for a group, which all of it enter; create it, and sweep what a crash left half-written.

    Raises OutputError, in every process, if another run holds it, or if one of the group sees another folder.
    """
    with ExitStack() as held:
        turn = Turn(folder=out, name=group.lead(lambda: _taken(out, group, held)), group=group)
        group.agree(turn.begin)
        yield turn


def _taken(out: Path, group: Group, held: ExitStack) -> str:
    """Lock a folder and name whose turn it is."""
    again = group.size > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    held.enter_context(locked_folder(out, wait_s=LOCK_WAIT_S if again else 0))
    name = secrets.token_hex(8)
    if group.size > 1:
        write_bytes(out / TURN, name.encode())
        held.callback(_given_up, out / TURN)
    else:
        remove([out / TURN])
    return name


def _given_up(turn: Path) -> None:
    """End a turn; one that stays is ended by the next run."""
    with suppress(OSError):
        turn.unlink()


def _written(folder: Path) -> str:
    """Return whose turn it is, as the folder says."""
    try:
        return read_whole(folder / TURN, MAX_TURN_BYTES).decode(errors="replace")
    except OSError:
        return ""

"""What may be done to the package in a process that attacks it: bugs, and defences taken away to see that attacks tell.

A weakness is the name of a function below, its argument behind a blank.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from dataclasses import replace
from typing import Any


def weaken(weakness: str) -> None:
    """Do what is named to this process."""
    name, _, argument = weakness.partition(" ")
    {
        "raise_in": raise_in,
        "escape_nothing": lambda _: escape_nothing(),
        "repeat_arguments": lambda _: repeat_arguments(),
        "note_patients": lambda _: note_patients(),
        "call_scanners_by_patients": lambda _: call_scanners_by_patients(),
    }[name](argument)


def raise_in(name: str) -> None:
    """Let a function, such as "ich_seq.exploration.flat", raise an error that tells its arguments, as KeyErrors do."""
    module, _, function = name.rpartition(".")

    def failing(*arguments: Any, **named: Any) -> None:
        raise RuntimeError(f"{function} of {arguments} {named}")

    if not callable(getattr(importlib.import_module(module), function)):
        raise TypeError(f"{name} is no function")
    setattr(importlib.import_module(module), function, failing)


def escape_nothing() -> None:
    """Let pages take text for markup."""
    from ich_seq import pages

    pages._templates().autoescape = False


def repeat_arguments() -> None:
    """Print the arguments as they stand, as a refusal does that trusts them."""
    from ich_seq import cli

    def main() -> None:
        print(*sys.argv[1:], file=sys.stderr)
        plain()

    plain, cli.main = cli.main, main


def note_patients() -> None:
    """Keep a note of each patient in a temporary file, in another encoding."""
    from ich_seq import studies

    def read_file(*arguments: Any) -> Any:
        headers = plain(*arguments)
        with tempfile.NamedTemporaryFile(delete=False) as note:
            note.write("".join(getattr(header, "patient_id", "") for header in headers).encode("utf-16-le"))
        return headers

    plain, studies.read_file = studies.read_file, read_file


def call_scanners_by_patients() -> None:
    """Read the patient where the scanner is meant."""
    from ich_seq import studies

    def read_file(*arguments: Any) -> Any:
        headers = plain(*arguments)
        return tuple(replace(h, scanner=h.patient_id) if hasattr(h, "patient_id") else h for h in headers)

    plain, studies.read_file = studies.read_file, read_file

"""Attacks on the package, all of them, into a table: `make battery` (some two hours on two cores).

    python tools/battery.py OUT [--scale 1.0] [--only kills,soak] [--seed 0]

Writes OUT/battery.json and OUT/battery.md, the rows of docs/reliability.md with all figures, after each attack. Ends
with 1 if anything failed. docs/reliability.md says what each attack is and what it has to show.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attacks import Outcome
from attacks.scene import build
from attacks.zygote import Zygote

ALONE = ("bad_inputs", "mutants", "size_lies", "metamorphic", "soak")
"""Attacks that bring their own data."""

ON_THE_SCENE = (
    "kills",
    "disk_faults",
    "interruptions",
    "crowds",
    "hostile_artefacts",
    "hostile_pickles",
    "hostile_mutants",
    "injections",
    "phi",
    "air_gap",
)
"""Attacks on commands, that need a scene."""


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--scale", default=1.0, show_default=True, help="Of the full numbers.")
@click.option("--only", default=",".join((*ALONE, *ON_THE_SCENE)), help="Names of attacks, with commas between.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, scale: float, only: str, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="battery-") as folder, Zygote() as zygote:
        scene = build(Path(folder) / "scene", zygote)
        for name in only.split(","):
            needed = {"scene": scene, "zygote": zygote} if name in ON_THE_SCENE else {}
            work = Path(folder) / name
            work.mkdir()
            began = time.monotonic()
            outcome = outcome_of(name, work, scale=scale, seed=seed, **needed)
            rows.append(Row(name, scale, outcome, time.monotonic() - began))
            write(out, rows)
            click.echo(rows[-1].line())
    sys.exit(any(row.outcome.failures for row in rows))


def outcome_of(name: str, work: Path, **how: Any) -> Outcome:
    """Run an attack; one that breaks is a failure, and the others are still of use."""
    try:
        outcome: Outcome = import_module(f"attacks.{name}").run(work, **how)
    except Exception as error:
        traceback.print_exc()
        return Outcome(0, (f"the attack itself ended with {type(error).__name__}: {error}",))
    return outcome


@dataclass(frozen=True)
class Row:
    """An attack, how much of it was run, what became of it, how long it took."""

    name: str
    scale: float
    outcome: Outcome
    seconds: float

    def line(self) -> str:
        """Return it as a row of the table."""
        outcome, minutes = self.outcome, self.seconds / 60
        figures = "; ".join(f"{name} {value}" for name, value in outcome.figures.items())
        failures = len(outcome.failures)
        return f"| {self.name} | {self.scale:g} | {outcome.trials:,} | {failures} | {figures} | {minutes:.1f} |"


def write(out: Path, rows: list[Row]) -> None:
    machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    (out / "battery.json").write_text(
        json.dumps({"machine": machine, "attacks": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    head = "| attack | scale | trials | failures | figures | minutes |\n|---|---|---|---|---|---|"
    (out / "battery.md").write_text("\n".join([head, *(row.line() for row in rows)]) + "\n")


if __name__ == "__main__":
    main()

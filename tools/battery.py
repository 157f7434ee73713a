"""Attacks on the package, all of them, into a table: `make battery` (about an hour on two cores).

    python tools/battery.py OUT [--scale 1.0] [--only kills,soak] [--seed 0]

Writes OUT/battery.json and OUT/battery.md, the table of docs/reliability.md, after each attack. Ends with 1 if anything
failed. docs/reliability.md says what each attack is and what it has to show.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))
from attacks import Outcome
from attacks.forked import Zygote
from attacks.scene import build

ALONE = ("bad_inputs", "mutants", "size_lies", "metamorphic", "soak")
"""Attacks that bring their own data."""

ON_THE_SCENE = ("kills", "disk_faults", "interruptions", "crowds", "hostile_artefacts", "injections", "phi", "air_gap")
"""Attacks on commands, that need a scene."""

Attack = Callable[..., Outcome]


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--scale", default=1.0, show_default=True, help="Of the full numbers.")
@click.option("--only", default=",".join((*ALONE, *ON_THE_SCENE)), help="Names of attacks, with commas between.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, scale: float, only: str, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Outcome, float]] = []
    with tempfile.TemporaryDirectory(prefix="battery-") as folder, Zygote() as zygote:
        scene = build(Path(folder) / "scene", zygote)
        for name in only.split(","):
            needed = {"scene": scene, "zygote": zygote} if name in ON_THE_SCENE else {}
            work = Path(folder) / name
            work.mkdir()
            began = time.monotonic()
            try:
                outcome = import_module(f"attacks.{name}").run(work, scale=scale, seed=seed, **needed)
            except Exception as error:  # the other attacks are still of use
                traceback.print_exc()
                outcome = Outcome(name, 0, (f"the attack itself ended with {type(error).__name__}: {error}",))
            rows.append((outcome, time.monotonic() - began))
            write(out, rows)
            click.echo(row_of(*rows[-1]))
    sys.exit(any(outcome.failures for outcome, _ in rows))


def write(out: Path, rows: list[tuple[Outcome, float]]) -> None:
    machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    found = {"machine": machine, "attacks": [asdict(outcome) | {"seconds": round(s, 1)} for outcome, s in rows]}
    (out / "battery.json").write_text(json.dumps(found, indent=2) + "\n")
    head = "| attack | trials | failures | figures | minutes |\n|---|---|---|---|---|"
    (out / "battery.md").write_text("\n".join([head, *(row_of(*row) for row in rows)]) + "\n")


def row_of(outcome: Outcome, seconds: float) -> str:
    figures = "; ".join(f"{name} {value}" for name, value in outcome.figures.items())
    return f"| {outcome.name} | {outcome.trials:,} | {len(outcome.failures)} | {figures} | {seconds / 60:.1f} |"


if __name__ == "__main__":
    main()

"""Attacks on the package, a module for each family: what each tried, what went wrong, and the figures.

A module with `run(work, *, scale, seed, ...)` is an attack, the others are what attacks share. `work` is an empty
folder of its own, `scale` 1.0 is the full size that docs/reliability.md reports, a smaller one the part of it that
`make test` runs. It returns an `Outcome`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Figures = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attack: how often it was tried, each failure as a sentence, figures by what they measure."""

    trials: int
    failures: tuple[str, ...] = ()
    figures: Figures = field(default_factory=dict)


def scaled(full: int, scale: float, least: int = 1) -> int:
    """Return how many trials a size stands for."""
    return max(least, round(full * scale))

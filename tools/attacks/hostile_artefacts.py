"""Artefacts that are whole and say the wrong thing: commands have to refuse them, soon and in bounds.

Records with absurd values, weights and studies that do not fit them, states of other trainings, pipes and devices in
the place of files. All hashes are right: nothing but sense is left to refuse them by.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks import Outcome, scaled
from attacks.absurdities import Case, absurd_settings, absurd_texts, absurd_values
from attacks.misfits import misfit_indexes, misfit_states, misfit_studies, misfit_weights, other_kinds
from attacks.scene import Scene
from attacks.targets import TARGETS, fresh, prepare, run_on
from attacks.zygote import Done, Zygote


@dataclass(frozen=True, slots=True)
class Judged:
    """A case, how the command ended that was given it, and what that means."""

    case: Case
    end: str
    done: Done

    @property
    def wrong(self) -> bool:
        """Tell whether the command should not have ended so."""
        return self.end not in ("refused", "done anew")


def all_cases(prepared: Path) -> list[Case]:
    """Return every case there is."""
    return [
        *absurd_values(),
        *absurd_texts(),
        *absurd_settings(),
        *misfit_weights(),
        *misfit_studies(),
        *misfit_indexes(),
        *misfit_states(),
        *other_kinds(prepared),
    ]


def judge(case: Case, prepared: Path, work: Path, scene: Scene, zygote: Zygote) -> Judged:
    """Do a harm to a fresh copy, and run the command that reads it."""
    target = next(target for target in TARGETS if target.name == case.target)
    copy = fresh(prepared, work, target)
    case.harm(copy)
    if case.vouched and target.vouch is not None:
        target.vouch(copy)
    return Judged(case, *run_on(target, copy, scene, zygote))


def run(work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0) -> Outcome:
    """Do all harms, one after the other."""
    prepared = work / "prepared"
    prepare(prepared, scene, zygote)
    cases = all_cases(prepared)
    chosen = sorted(np.random.default_rng(seed).permutation(len(cases))[: scaled(len(cases), scale)])
    judged = [judge(cases[number], prepared, work, scene, zygote) for number in chosen]
    refused = [one.done for one in judged if one.end == "refused"]
    of = Counter(one.case.target for one in judged)
    return Outcome(
        trials=len(judged),
        failures=tuple(f"{one.case}: {one.end}." for one in judged if one.wrong),
        figures={
            **{f"cases of {name}": count for name, count in of.items()},
            "refused": len(refused),
            "done anew": sum(one.end == "done anew" for one in judged),
            "slowest refusal (s)": round(max((d.cpu_s for d in refused), default=0.0), 1),
            "most memory of a refusal (MB)": round(max((d.most_mb for d in refused), default=0.0)),
        },
    )

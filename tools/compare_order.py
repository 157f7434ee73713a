"""Hold the slice order of a feature store against a record of the true one.

    python tools/compare_order.py FEATURES ORDER.csv

ORDER.csv has the columns study, sop, position_mm, feet to head. Prints how many studies agree in every
slice; ends with 1 if any differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd

from ich_seq.store import open_store

TOLERANCE_MM = 0.01


@click.command(help=__doc__)
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("order", type=click.Path(path_type=Path))
def main(features, order):
    truth = dict(iter(pd.read_csv(order, dtype={"study": str, "sop": str}).groupby("study")))
    wrong = [study.study_uid for study in open_store(features) if not agrees(study, truth.pop(study.study_uid))]
    click.echo(
        f"{len(open_store(features)) - len(wrong)} studies in the true order, {len(wrong)} not, {len(truth)} absent"
    )
    sys.exit(bool(wrong or truth))


def agrees(study, rows):
    off_mm = study.positions_mm - rows["position_mm"].to_numpy()
    return list(study.sop_uids) == rows["sop"].tolist() and bool(np.abs(off_mm - off_mm.mean()).max() < TOLERANCE_MM)


if __name__ == "__main__":
    main()

"""A picture of how a training went."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence


def draw_curves(curves: Mapping[int, Sequence[Mapping[str, float]]], watched: str) -> bytes:
    """Draw the losses over the epochs, a colour a fold, as PNG: learnt in thin lines, watched in thick ones.

    `curves` has the rows of each fold (`epoch`, `learnt_loss`, `watched_loss`); `watched` says of which slices. The
    final network watches none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="epoch", ylabel="weighted log loss")
    for number, (fold, rows) in enumerate(sorted(curves.items())):
        epochs, colour = [row["epoch"] for row in rows], f"C{number}"
        axes.plot(epochs, [row["learnt_loss"] for row in rows], color=colour, marker=".", linewidth=0.8, linestyle="--")
        watching = [row["watched_loss"] for row in rows if "watched_loss" in row]
        label = f"fold {fold}" if watching else "final"
        axes.plot(epochs[: len(watching)], watching, color=colour, marker=".", linewidth=2, label=label)
    axes.set_title(f"thick: {watched}; dashed: the slices learnt from, as varied")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()

"""The learning rate over a training: up in a line, down in a cosine."""

from __future__ import annotations

import math


def rate(done: float, warmup: float) -> float:
    """Return the share of the full learning rate when the share `done` of a training is behind it.

    It rises in a line over the share `warmup` and then falls in half a cosine to 0 (Loshchilov and
    Hutter 2017). Never quite 0 at the start, so that the first step counts.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))

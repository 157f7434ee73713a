"""Which pieces of work are whose: pure, and the same wherever and in whatever order the pieces are named."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def shares(weights: Mapping[str, int], size: int) -> list[list[str]]:
    """Deal pieces of work, by name, among `size` processes; each share keeps the order of `weights`.

    The heaviest piece goes first, each to whom has least so far (Graham 1969, longest processing time): so no share is
    heavier than another by more than the heaviest piece. Names settle draws, so the shares depend on no order.
    """
    heap = [(0, rank) for rank in range(size)]
    owner: dict[str, int] = {}
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        load, rank = heap[0]
        owner[name] = rank
        heapq.heapreplace(heap, (load + weights[name], rank))
    return [[name for name in weights if owner[name] == rank] for rank in range(size)]

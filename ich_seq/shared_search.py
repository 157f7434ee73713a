"""A folder of DICOM files read by a group: each header once, and each study then with one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ich_seq.distributed import Group
from ich_seq.inputs import Given, Listing
from ich_seq.progress import Progress
from ich_seq.sharding import shares
from ich_seq.studies import Findings, find_studies, findings_of, list_files_of, read_headers

STUDIES_AT_ONCE = 128
"""Studies that are sent to a process in one message: of RSNA's length they are some MB of headers."""

Item = TypeVar("Item")


def find_together(
    root: Given, group: Group, *, skip: Path | None, workers: int, hide_names: bool, progress: Progress
) -> Findings:
    """Find every study of the inputs as `find_studies` does, each process reading a part of the headers.

    The first process lists the files, so that no other's view of a folder counts, and has the findings in the end;
    the others have none. Raises, in every process, as `find_studies` does.
    """
    if group.size == 1:
        return find_studies(root, skip=skip, workers=workers, hide_names=hide_names, progress=progress)
    nothing = Listing((), ())
    listing = group.agree(lambda: list_files_of(root, skip, hide_names=hide_names) if group.writes else nothing)
    mine = group.deal([listing.sources[rank :: group.size] for rank in range(group.size)])
    results = group.collect(list(read_headers(mine, workers=workers, progress=progress)))
    return findings_of(results, listing.unused)


def deal_studies(items: Mapping[str, Item], weights: Mapping[str, int], group: Group) -> list[Item]:
    """Give this process its share of what the first one has, by Study Instance UID, in order; `weights` balance it."""
    dealt = [[items[uid] for uid in share] for share in shares(weights, group.size)]
    return group.deal(dealt, STUDIES_AT_ONCE)

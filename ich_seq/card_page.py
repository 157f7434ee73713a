"""A bundle's card as a page to read."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from jinja2 import UndefinedError

from ich_seq import ArtefactError
from ich_seq.labels import LABELS
from ich_seq.pages import render

CARD_PAGE = "card.html"


def card_page(card: Mapping[str, Any]) -> bytes:
    """Return the page of a bundle's card (see `bundle.read_card`): use, figures, data, networks, settings, hashes.

    Of weights that others published it has what these said, and says that it is theirs. Raises ArtefactError if the
    card lacks any of it.
    """
    if card.get("labels") != list(LABELS):
        raise ArtefactError(f"The card's labels are {card.get('labels')}, this version has {list(LABELS)}.")
    try:
        if "published" in card:
            return _page_of_published(card)
        training = card["training"]
        settings = json.dumps(training["settings"], indent=2, sort_keys=True)
        lengths = sorted((int(n), int(count)) for n, count in training["lengths"].items())
        slices = {"least": lengths[0][0], "middle": _middle(lengths), "most": lengths[-1][0]}
        return render("card.html", card=card, training=training, settings=settings, slices=slices)
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ArtefactError(f"The bundle's card does not say all that a card says ({error}); train again.") from error


def _page_of_published(card: Mapping[str, Any]) -> bytes:
    published = card["published"]
    figures = published["figures_of_its_authors"]
    return render("published_card.html", card=card, published=published, figures=figures)


def _middle(counted: Sequence[tuple[int, int]]) -> int:
    """Return the middle one of values that ascend, each with how often it is there."""
    so_far = list(accumulate(count for _, count in counted))
    return counted[bisect_right(so_far, so_far[-1] // 2)][0]

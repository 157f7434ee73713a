"""Work that may never end: waited for as long as it gets on, and left alone when it does not."""

from __future__ import annotations

import threading
import time

import pytest

from ich_seq.patience import Stalled, patiently


def test_what_work_returns_is_returned():
    """Done at once, it need not tell of itself."""
    assert patiently(lambda advance: 7, least=1, every_s=60) == 7


def test_what_work_raises_is_raised():
    """A TimeoutError of its own is no verdict on it."""

    def fail(advance):
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        patiently(fail, least=1, every_s=60)


def test_work_that_gets_on_may_take_any_time():
    """Many times as long as it may be silent."""

    def work(advance):
        for _ in range(40):
            time.sleep(0.01)
            advance(1)
        return "done"

    assert patiently(work, least=1, every_s=0.1) == "done"


@pytest.mark.parametrize("amount", [0, 1])
def test_work_that_does_not_get_on_is_given_up(amount):
    """Silent, or too slow by far; and it ends when it next tells of itself."""
    ended = threading.Event()

    def work(advance):
        try:
            while True:
                time.sleep(0.01)
                advance(amount)
        except Stalled:
            ended.set()
            raise

    began = time.monotonic()
    with pytest.raises(Stalled):
        patiently(work, least=1000, every_s=0.1)
    assert time.monotonic() - began < 5
    assert ended.wait(5)

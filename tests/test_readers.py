"""Reading ahead: in order, no further than asked, on one core a reader, and over when nobody listens any more."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from ich_seq.readers import READER, read_ahead

ROOT = Path(__file__).resolve().parents[1]
CORES = """
import threading, torch
from ich_seq.readers import read_ahead
def cores(_):
    torch.ones(200_000).exp()
    return torch.get_num_threads()
torch.set_num_threads(3)
before = torch.get_num_threads()
print(before, set(read_ahead(cores, range(8), 2)), torch.get_num_threads())
later = threading.Thread(target=lambda: print(cores(0)))
later.start()
later.join()
"""


def readers() -> int:
    return sum(thread.name.startswith(READER) for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_results_come_in_order_and_once(workers, count):
    """Though later ones are made before earlier ones, and there may be fewer of them than readers."""
    wait = threading.Event()

    def read(item: int) -> int:
        wait.wait(0.002 * (item % 3))
        return item * item

    assert list(read_ahead(read, range(count), workers)) == [i * i for i in range(count)]


@pytest.mark.parametrize(("workers", "begun"), [(0, 1), (1, 2), (3, 4)])
def test_no_more_is_read_than_is_asked_for(workers, begun):
    """Whoever takes the first result has asked for it and for `workers` more, of however many there are."""
    asked = []

    def endless():
        while True:
            asked.append(len(asked))
            yield asked[-1]

    with closing(read_ahead(lambda item: item, endless(), workers)) as results:
        assert next(results) == 0
        assert len(asked) == begun


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_place(workers):
    """What was read before it is delivered, then it is raised as it is."""
    results = read_ahead(lambda item: 1 // (3 - item), range(9), workers)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    assert readers() == 0


def test_whoever_stops_listening_ends_the_readers():
    """What no thread has begun is dropped, and no thread is left."""
    gate, begun = threading.Event(), []

    def read(item: int) -> int:
        begun.append(item)
        if item:
            gate.wait(10)
        return item

    with closing(read_ahead(read, range(100), 2)) as results:
        assert next(results) == 0
        assert readers() == 2
        threading.Timer(0.1, gate.set).start()
    assert readers() == 0
    assert set(begun) <= {0, 1, 2}


@pytest.mark.slow
def test_a_reader_computes_on_one_core_and_nobody_else_is_held_to_it():
    """Three cores for the others, before and after, in threads that begin later too."""
    command = [sys.executable, "-c", CORES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3 {1} 3", "3"]

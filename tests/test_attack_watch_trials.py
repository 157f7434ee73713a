"""tools/attacks/watch_trials.py: a trial that kills or hangs its process is told, and those after it are tried too."""

from __future__ import annotations

import os
import signal
import time

from attacks.watch_trials import Fate, watched


def square(number):
    return number * number


def kill_at_two(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def compute_at_one(number):
    while number == 1:
        pass
    return number


def sleep_at_one(number):
    if number == 1:
        time.sleep(0.4)  # longer than the limit, but it computes nothing: a busy machine makes honest trials wait
    return number


def test_answers_come_in_order():
    """Each number has its own answer."""
    assert watched(square, 5, 5.0) == [(n, n * n) for n in range(5)]


def test_shared_among_processes_answers_come_in_order_too():
    """Two processes at once change nothing but the time."""
    assert watched(square, 2001, 5.0) == [(n, n * n) for n in range(2001)]


def test_a_killed_process_is_told_and_replaced():
    """One trial kills its process; the others have their answers."""
    assert watched(kill_at_two, 4, 5.0) == [(0, 0), (1, 1), (2, Fate.KILLED), (3, 3)]


def test_a_trial_that_computes_for_ever_is_told_and_ended():
    """One trial never returns; the others have their answers."""
    assert watched(compute_at_one, 3, 0.2) == [(0, 0), (1, Fate.HUNG), (2, 2)]


def test_a_trial_that_waits_is_waited_for():
    """Wall time alone condemns nothing."""
    assert watched(sleep_at_one, 3, 0.2) == [(0, 0), (1, 1), (2, 2)]

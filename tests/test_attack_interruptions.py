"""Signals end commands in time; a package that does not hear them is found out."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["grounds", "weakened"]


@pytest.mark.slow
def test_a_slice_of_the_interruptions_finds_nothing(tmp_path, scene, zygote):
    from attacks.interruptions import POINTS, run

    outcome = run(tmp_path, scene=scene, zygote=zygote, scale=2 / POINTS, seed=2, commands=("extract-features",))
    assert outcome.failures == ()
    assert outcome.trials == 3
    assert outcome.figures["slowest end s"] < 5


@pytest.fixture
def interrupt(tmp_path, scene):
    """Interrupt extract-features early by SIGTERM, in a child of a process or in a real start; gives what was noted."""
    from attacks.interruptions import Attack, Interruption
    from attacks.resumption import Ground

    def attempt(process, way, after_s):
        course = Ground(tmp_path, scene, process).course("extract-features", "afresh")
        attack = Attack(tmp_path, process)
        attack.attempt(Interruption(course, signal.SIGTERM, after_s), tmp_path / "out", getattr(attack, way))
        return attack

    return attempt


@pytest.mark.slow
def test_a_package_that_does_not_hear_signals_does_not_survive_them(interrupt, weak_zygote):
    attack = interrupt(weak_zygote, "in_child", 0.02)
    assert any("it ended with 0, not 143" in failure for failure in attack.failures)


@pytest.mark.slow
def test_a_real_start_is_interrupted(interrupt, zygote):
    attack = interrupt(zygote, "in_start", 0.3)
    assert attack.failures == []
    assert attack.seen["SIGTERM ended with 143"] == 1

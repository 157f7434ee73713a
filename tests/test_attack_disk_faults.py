"""Faults of the disk end in a sentence and exit code 5; a package that writes without looking is found out."""

from __future__ import annotations

import pytest

pytest_plugins = ["grounds", "weakened"]


@pytest.mark.slow
def test_a_slice_of_the_disk_faults_finds_nothing(tmp_path, scene, zygote):
    from attacks.disk_faults import run

    outcome = run(tmp_path, scene=scene, zygote=zygote, scale=0.01, commands=("extract-features",))
    assert outcome.failures == ()
    assert outcome.trials == outcome.figures["faults"] >= 3
    assert outcome.figures["exit code 5"] >= 2


@pytest.mark.slow
def test_a_package_that_writes_without_looking_does_not_survive_them(tmp_path, scene, weak_zygote):
    from attacks.disk_faults import run

    outcome = run(tmp_path, scene=scene, zygote=weak_zygote, scale=0.01, commands=("extract-features",))
    assert any("a traceback" in failure for failure in outcome.failures)
    assert any("it ended with 1" in failure for failure in outcome.failures)

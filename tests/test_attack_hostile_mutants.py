"""Files changed a little, and that the attack finds a package that looks at no hash, or dies of what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attacks.hostile_mutants import Herd, read_mutants
from attacks.mutations import OF_SAFETENSORS, joined, mutate, parts, swap_tensors
from attacks.targets import STUDY_FILE, TARGETS, prepare
from attacks.zygote import Done
from safetensors.numpy import load, save

from ich_seq import store, weights

pytest_plugins = ["grounds"]

ATTACKED = TARGETS[:3]


@pytest.fixture(scope="module")
def prepared(scene, zygote, tmp_path_factory) -> Path:
    """The three kinds of artefacts, to be harmed in copies."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, scene, zygote, ATTACKED)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("target", ATTACKED, ids=lambda target: target.name)
def test_a_slice_of_the_mutants_finds_nothing(prepared, tmp_path, target):
    """Each mutant is refused, but for those that came out as they were."""
    tally = read_mutants(target, "*.safetensors", prepared, tmp_path, range(8), seed=0, vouched=False)
    assert tally.failures == []
    assert set(tally.ends) <= {"refused", "identical"}
    assert tally.ends["refused"] >= 5


@pytest.mark.slow
def test_an_index_with_the_right_hash_is_refused_or_read(prepared, zygote, tmp_path):
    """In a process apart, which lives to tell."""
    tally, most_mb = Herd("features", "studies.parquet", 12, "vouched").read(prepared, tmp_path, zygote, seed=0)
    assert tally.failures == []
    assert tally.ends.total() == 12
    assert most_mb > 0


class Anything(str):
    """A hash that is every hash."""

    def __ne__(self, other: object) -> bool:
        return False


@pytest.mark.slow
def test_a_package_that_looks_at_no_hash_is_found(prepared, tmp_path, monkeypatch):
    """Changed weights, and changed embeddings, are then read in silence."""
    for module in (weights, store):
        monkeypatch.setattr(module, "sha256_bytes", lambda data: Anything())
    for target, pattern in ((ATTACKED[0], "rnn-*.safetensors"), (ATTACKED[1], STUDY_FILE)):
        tally = read_mutants(target, pattern, prepared, tmp_path, range(8), seed=0, vouched=False)
        assert any("was read in silence" in failure for failure in tally.failures)


@pytest.mark.slow
def test_the_death_of_a_reader_is_found(prepared, tmp_path):
    """The mutant that was read last is named."""

    class Dying:
        """What runs processes, all of which die."""

        def run(self, arguments, **how):
            return Done(139, "", "mutant 3 of features, a\nmutant 4 of features, b\n", 1.0, 0)

    tally, _ = Herd("features", "studies.parquet", 12, "vouched").read(prepared, tmp_path, Dying(), seed=0)
    assert tally.failures == ["mutant 4 of features, b ended the process with 139."]


def test_mutations_are_what_they_are_called():
    """A changed file, mostly; the same from the same seed; swapped tensors still make a file."""
    data = save({"a": np.arange(6.0), "b": np.ones(6), "c": np.zeros(3, np.float32)})
    assert load(joined(*parts(data))).keys() == load(data).keys()
    made = [mutate(data, OF_SAFETENSORS, np.random.default_rng(seed)) for seed in range(200)]
    assert made == [mutate(data, OF_SAFETENSORS, np.random.default_rng(seed)) for seed in range(200)]
    assert {way for way, _ in made} == {way.__name__.replace("_", " ") for way in OF_SAFETENSORS}
    assert sum(mutant != data for _, mutant in made) > 150
    swapped = {seed: load(swap_tensors(data, np.random.default_rng(seed))) for seed in range(8)}
    assert any(np.array_equal(arrays["a"], np.ones(6)) for arrays in swapped.values())

"""tools/simulate_features.py: real labels, errors as alike as real ones, a store that the package takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulate_features as tool
from scipy.special import expit

from ich_seq.dicom import SliceHeader
from ich_seq.labels import LABELS, read_labels
from ich_seq.metrics import auc, weighted_log_loss
from ich_seq.rnn_training import encoders_of
from ich_seq.sequences import label_studies
from ich_seq.store import open_store
from ich_seq.studies import group_studies

K, ANY, DIM = len(LABELS), LABELS.index("any"), 64


def made_header(study: int, position: int) -> SliceHeader:
    """A slice of a study, 5 mm above the one before it."""
    return SliceHeader(
        path=Path(), file=f"{study}.{position}", patient_id=f"patient {study // 2}", study_uid=f"study {study}",
        series_uid="", sop_uid=f"1.{study}.{position}", transfer_syntax="", image_type=(), acquisition=0, instance=0,
        position_mm=(0.0, 0.0, 5.0 * position), orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), rows=512, columns=512,
        spacing_mm=(0.5, 0.5), bits_stored=16, signed=True, padding=None, slope=1.0, intercept=-1024.0,
        pixel_offset=0, file_bytes=0, modified_ns=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    """24 studies of 12 patients, 1 to 34 slices; half of them hold bleeds of up to 6 slices."""
    rng = np.random.default_rng(0)
    lengths = [1, *rng.integers(20, 35, 23)]
    studies, _ = group_studies([made_header(s, z) for s, n in enumerate(lengths) for z in range(n)])
    made = []
    for number, study in enumerate(studies):
        targets = np.zeros((len(study.slices), K), np.uint8)
        if number % 2:
            start = rng.integers(4, 14)
            targets[start : start + 6, [number % 5, ANY]] = 1
        made.append(tool.Case(study=study, targets=targets))
    return made


@pytest.fixture(scope="module")
def simulated(cases):
    return tool.simulate(cases, tool.ERRORS, dim=DIM, seed=3)


def same(a, b):
    return np.array_equal(a.features.features, b.features.features) and np.array_equal(
        a.features.logits, b.features.logits
    )


def test_a_seed_decides_everything(cases, simulated):
    """The same seed gives the same bytes, another one others."""
    again, other = (tool.simulate(cases, tool.ERRORS, dim=DIM, seed=seed).studies for seed in (3, 4))
    assert all(same(a, b) for a, b in zip(simulated.studies, again, strict=True))
    assert not any(same(a, b) for a, b in zip(simulated.studies, other, strict=True))


def test_a_study_has_the_same_embeddings_in_any_company(cases, simulated):
    """Drawn alone from the others, a study is embedded alike: only the head is fitted on all."""
    fewer = tool.simulate(cases[4:], tool.ERRORS, dim=DIM, seed=3).studies
    for a, b in zip(simulated.studies[4:], fewer, strict=True):
        assert np.array_equal(a.features.features, b.features.features)


def test_the_logits_are_a_linear_head_on_the_embeddings(simulated):
    for study in simulated.studies:
        said = study.features.features.astype(np.float32) @ simulated.weight.T + simulated.bias
        np.testing.assert_allclose(study.features.logits, said, atol=1e-5)


def test_the_errors_have_the_variance_and_likeness_that_are_promised():
    """Of variance 1; alike along z by the shares and the length, not at all if independent; shared by the labels."""
    z = 5.0 * np.arange(30)
    rng = np.random.default_rng(0)
    for errors in (tool.ERRORS, tool.INDEPENDENT):
        drawn = np.stack([tool.error(z, errors, rng) for _ in range(1500)])
        assert drawn.var(axis=0).mean() == pytest.approx(1, abs=0.05)
        alike = (drawn[:, 10] * drawn[:, 12]).mean()
        expected = errors.study + errors.smooth * np.exp(-10 / errors.length_mm)
        assert alike == pytest.approx(expected, abs=0.05)
        assert (drawn[:, 10, 1] * drawn[:, 10, 2]).mean() == pytest.approx(0.3, abs=0.08)


def test_the_ends_of_a_bleed_show_less_of_it():
    """Inside a bleed its size is near 1, at its last slice about half, beyond it little; millimetres decide."""
    targets = np.zeros((30, K), np.uint8)
    targets[10:20, ANY] = 1
    size = tool.sizes(targets, 5.0 * np.arange(30), tool.SIZE_MM)[:, ANY]
    assert size[15] > 0.99
    assert 0.5 < size[10] < 0.85
    assert 0.1 < size[9] < 0.5
    assert size[5] < 0.01
    thin = tool.sizes(targets, 1.0 * np.arange(30), tool.SIZE_MM)[:, ANY]
    assert thin[8] > size[8]


def test_the_store_and_its_labels_are_those_of_the_package(cases, simulated, tmp_path):
    """open_store takes it, the networks' files are vouched for, features and labels come back as they were."""
    tool.write(tmp_path, cases, simulated, seed=3)
    store = open_store(tmp_path)
    studies, unlabelled = label_studies(store, read_labels(tmp_path / tool.LABEL_FILE))
    assert not unlabelled
    assert store.in_sample() == []
    networks = encoders_of(store)
    assert list(networks) == list(range(tool.FOLDS))
    assert all((spec.dim, spec.head) == (DIM, True) for spec in networks.values())
    given = {s.features.study_uid: s for s in simulated.studies}
    for study in studies:
        assert same(study, given[study.features.study_uid])
        assert np.array_equal(study.targets, given[study.features.study_uid].targets)
    of_patient = {}
    for study in studies:
        of_patient.setdefault(study.features.patient_key, set()).add(study.features.network)
    assert all(len(networks) == 1 for networks in of_patient.values())


def test_without_the_table_the_tool_says_so(tmp_path):
    with pytest.raises(tool.click.UsageError, match=tool.TABLE):
        tool.read_cases(tmp_path)


@pytest.mark.slow
def test_real_labels_give_the_figures_of_real_networks(shared_data):
    """On 250 real studies: loss and AUC of the CNN as promised; smoothing helps a little, by far less than if
    errors were independent."""
    folder = shared_data / "rsna_tables"
    if not folder.is_dir():
        pytest.skip(f"no tables at {folder}")
    cases = tool.read_cases(folder, studies=250, seed=0)
    gains = {}
    for errors in (tool.ERRORS, tool.INDEPENDENT):
        studies = tool.simulate(cases, errors, dim=DIM, seed=0).studies
        targets = np.concatenate([s.targets for s in studies])
        alone = expit(np.concatenate([s.features.logits for s in studies]).astype(np.float64))
        smoothed = tool.cross_fitted([tool.neighbours(s.features.logits, 1) for s in studies], studies)
        gains[errors] = tool.gain(smoothed, alone, targets)
        assert 0.05 < weighted_log_loss(alone, targets) < 0.1
        assert 0.965 < auc(alone[:, ANY], targets[:, ANY]) < 0.99
    assert -20 < gains[tool.ERRORS] < -2
    assert gains[tool.INDEPENDENT] < -45


def test_wider_embeddings_have_networks_too(cases):
    """Every offered width has a network that makes it."""
    made = tool.simulate(cases[:12], tool.ERRORS, dim=DIM, seed=0)
    for dim in tool.ARCHS:
        head = replace(made, weight=np.zeros((K, dim), np.float32))
        assert tool.stand_in(head, 0).spec.dim == dim

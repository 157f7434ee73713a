"""The bundle: what was saved is what is loaded, and whatever was touched since is refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ich_seq import ArtefactError, IchSeqError, UsageError
from ich_seq.bundle import CARD, FAMILIAR, FEW_STUDIES, SCHEMA, Bundle, Calibrations, load_bundle, save_bundle
from ich_seq.calibration import Calibration
from ich_seq.config import Rnn
from ich_seq.encoder import SliceEncoder
from ich_seq.engines import Embedder
from ich_seq.files import sha256_file
from ich_seq.labels import LABELS
from ich_seq.model import SequenceModel
from ich_seq.novelty import Familiar
from ich_seq.smoothing import NO_KERNEL
from ich_seq.store import StudyFeatures
from ich_seq.weights import write_tensors

K = len(LABELS)
CPU = torch.device("cpu")
ENCODERS = ("encoder-0.safetensors", "encoder-1.safetensors")
MODELS = ("rnn-0.safetensors", "rnn-1.safetensors")
RNN = Rnn(projection=8, hidden=8, layers=2)
CALIBRATIONS = Calibrations(
    slices=Calibration(
        share=np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.3]),
        slope=np.array([1.0, 0.5, 2 / 3, 1.1, 0.1 + 0.2, 7.5]),
        intercept=np.array([0.0, -1.0, 1 / 3, 2.5, -0.1, 1e-17]),
    ),
    studies=Calibration(
        share=np.array([1.0, 0.1, 0.0, 0.5, 0.25, 0.75]),
        slope=np.array([1e-3, 1.0, 0.9, 1.5, np.pi, 0.7]),
        intercept=np.array([-3.0, 0.0, np.e, -0.7, 0.2, 1.9]),
    ),
    kernel=np.outer([1.0, 0.0, 0.5, 1.0, 1 / 3, 0.1], [0.2, 0.1, 0.05]),
)
LEVELS = ("slices", "studies")
NUMBERS = ("share", "slope", "intercept")


def usual(encoders) -> Familiar:
    """What is usual of embeddings of these encoders' width, different for each."""
    rng = np.random.default_rng(5)
    shape = len(encoders), encoders[0].spec.dim
    axes = np.linalg.qr(rng.normal(size=(shape[0], shape[1], 3)))[0].transpose(0, 2, 1).astype(np.float32)
    mean, scale = rng.normal(size=shape).astype(np.float32), rng.uniform(0.5, 2, shape).astype(np.float32)
    return Familiar(mean, scale, axes, 1.75)


def save(root: Path, encoders, models, execution, facts=None, *, half: bool = False) -> None:
    """Save a bundle of these, with these facts to tell of its training, or nothing."""
    save_bundle(
        root,
        encoders=encoders,
        execution=execution,
        models=models,
        calibrations=CALIBRATIONS,
        familiar=usual(encoders),
        facts=facts or {},
        half=half,
    )


class Gadget:
    """An object whose unpickling creates a file: what a hostile checkpoint does, made harmless."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def randomised(dim: int, seed: int) -> SequenceModel:
    """A model in which every parameter is random, so that all of it shows in what it says."""
    generator = torch.Generator().manual_seed(seed)
    model = SequenceModel(dim, RNN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def models(headed_encoders) -> list[SequenceModel]:
    return [randomised(headed_encoders[0].spec.dim, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def saved(headed_encoders, models, execution, tmp_path_factory) -> Path:
    """A bundle of two encoders and two sequence models."""
    root = tmp_path_factory.mktemp("bundle")
    save(root, headed_encoders, models, execution, {"training": {"studies": 7}, "figures": {"rnn": None}})
    return root


@pytest.fixture(scope="module")
def views_of(make_study):
    """Make what each of two networks says of one study of N slices."""
    return lambda slices: [make_study(f"study of {slices}", slices, network=k, logits=True) for k in range(2)]


@pytest.fixture
def root(saved, tmp_path) -> Path:
    """A copy of the bundle to do harm to."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def edit(root: Path, change) -> None:
    card = json.loads((root / CARD).read_text())
    change(card)
    (root / CARD).write_text(json.dumps(card))


def test_a_loaded_bundle_says_exactly_what_the_saved_networks_say(saved, models, headed_encoders, execution, views_of):
    """Encoders, heads and sequence models come back bit for bit: the same embeddings, logits and probabilities."""
    bundle = load_bundle(saved, CPU)
    hu = torch.from_numpy(np.random.default_rng(0).normal(40, 60, (4, 32, 32)).astype(np.float32))
    embedders = {k: Embedder(encoder, execution, CPU) for k, encoder in enumerate(headed_encoders)}
    assert bundle.embedders.keys() == embedders.keys()
    for k, embedder in embedders.items():
        for got, expected in zip(bundle.embedders[k](hu), embedder(hu), strict=True):
            assert torch.equal(got, expected)
        assert bundle.embedders[k].spec == headed_encoders[k].spec
        assert bundle.embedders[k].execution == execution
    original = Bundle(
        embedders=embedders,
        models=tuple(models),
        calibrations=CALIBRATIONS,
        familiar=usual(headed_encoders),
        card={},
        card_sha256="",
        name="",
    )
    for slices in (1, 2, 12):
        views = views_of(slices)
        for got, expected in zip(bundle.predict(views), original.predict(views), strict=True):
            assert got.dtype == np.float64
            assert np.array_equal(got, expected)


def by_hand(models: list[SequenceModel], view: StudyFeatures) -> list[tuple[np.ndarray, np.ndarray]]:
    """Base and mean logits of the models, of the slices (N, K) and then of the study (K,)."""
    features, positions = torch.from_numpy(view.features).float()[None], torch.from_numpy(view.positions_mm)[None]
    lengths, base = torch.tensor([len(view.features)]), torch.from_numpy(view.logits)[None]
    with torch.no_grad():
        said = [model(features, positions, lengths, base) for model in models]
    assert (said[0].slices - said[1].slices).abs().max() > 0.01  # two models, not one twice
    mean_slices = sum(s.slices[0].double().numpy() for s in said) / len(models)
    mean_study = sum(s.studies[0].double().numpy() for s in said) / len(models)
    plain = view.logits.astype(np.float64)
    return [(plain, mean_slices), (plain.max(axis=0), mean_study)]


def smoothed(plain: np.ndarray) -> np.ndarray:
    """The logits of one study after the kernel, its ends repeated, distance after distance."""
    count, moved = len(plain), plain.copy()
    for r, weights in enumerate(CALIBRATIONS.kernel.T, start=1):
        padded = np.pad(plain, ((r, r), (0, 0)), mode="edge")
        moved += weights * (padded[:count] + padded[2 * r :] - 2 * plain)
    return moved


def calibrated(plain: np.ndarray, mean: np.ndarray, c: Calibration) -> np.ndarray:
    """Probabilities of base and mean logits: each label's blend, on its line, through the logistic function."""
    return 1 / (1 + np.exp(-(c.slope * (plain * (1 - c.share) + mean * c.share) + c.intercept)))


def test_a_prediction_is_the_calibrated_blend_of_the_base_and_the_mean_of_the_models(saved, models, views_of):
    """Base and each model by itself, averaged, blended and calibrated by hand, label by label: slices and study."""
    view = views_of(5)[0]
    slices, whole = load_bundle(saved, CPU).predict([view])
    assert slices.shape == (5, K)
    assert whole.shape == (K,)
    (plain, mean), (likeliest, mean_study) = by_hand(models, view)
    assert slices == pytest.approx(calibrated(smoothed(plain), mean, CALIBRATIONS.slices), rel=1e-5)
    assert whole == pytest.approx(calibrated(likeliest, mean_study, CALIBRATIONS.studies), rel=1e-5)
    assert np.abs(mean - plain).max() > 0.01  # the GRU says something of its own
    assert np.abs(smoothed(plain) - plain).max() > 0.01  # and the neighbours something else


def test_what_the_parts_say_stands_beside_the_blend(saved, models, views_of):
    """The CNN's is the logistic function of its logits, a study its likeliest slice; the models' that of their mean."""
    view, bundle = views_of(5)[0], load_bundle(saved, CPU)
    said = bundle.beside([view])
    assert list(said) == ["cnn", "rnn", "blend"]
    for level, (plain, mean) in zip(("slices", "studies"), by_hand(models, view), strict=True):
        for name, logits in (("cnn", plain), ("rnn", mean)):
            expected = np.reshape(1 / (1 + np.exp(-logits)), (-1, K))
            assert getattr(said[name], level) == pytest.approx(expected, rel=1e-5)
    slices, study = bundle.predict([view])
    assert np.array_equal(said["blend"].slices, slices)
    assert np.array_equal(said["blend"].studies, study[None])


@pytest.mark.parametrize("slices", [1, 2, 12])
def test_of_several_networks_the_mean_is_taken_of_logits(saved, models, views_of, slices):
    """Each network's base and refined logits by themselves, averaged and then calibrated by hand: slices and study."""
    views = views_of(slices)
    alone = [by_hand(models, view) for view in views]
    for a in alone:
        a[0] = smoothed(a[0][0]), a[0][1]
    for level, said in enumerate(load_bundle(saved, CPU).predict(views)):
        plain, mean = ((alone[0][level][i] + alone[1][level][i]) / 2 for i in range(2))
        assert said == pytest.approx(calibrated(plain, mean, getattr(CALIBRATIONS, LEVELS[level])), rel=1e-5)
        of_probabilities = sum(calibrated(*a[level], getattr(CALIBRATIONS, LEVELS[level])) for a in alone) / 2
        assert np.abs(said - of_probabilities).max() > 1e-3  # the mean of probabilities is another number


def test_the_order_and_the_repetition_of_networks_change_nothing(saved, views_of):
    """A mean knows no order, and of one network twice it is that network's own word."""
    bundle, views = load_bundle(saved, CPU), views_of(7)
    for got, expected in zip(bundle.predict(views[::-1]), bundle.predict(views), strict=True):
        assert got == pytest.approx(expected, rel=1e-6)
    for got, expected in zip(bundle.predict(views[:1] * 2), bundle.predict(views[:1]), strict=True):
        assert got == pytest.approx(expected, rel=1e-6)
    assert np.abs(bundle.predict(views[:1])[0] - bundle.predict(views[1:])[0]).max() > 0.01


def test_features_without_logits_are_refused(saved, views_of):
    """There is nothing to correct without the slice classifier's logits: refused, also where one network lacks them."""
    bundle, views = load_bundle(saved, CPU), views_of(3)
    for without in ([replace(views[0], logits=None)], [views[0], replace(views[1], logits=None)]):
        with pytest.raises(ValueError, match="without a head"):
            bundle.predict(without)


@pytest.mark.parametrize("engine", [None, "torch", "openvino"])
def test_another_engine_can_stand_in(saved, execution, headed_encoders, monkeypatch, engine):
    """An engine named when loading replaces the card's, for every encoder, and nothing else does; else it is kept."""
    made = []
    monkeypatch.setattr("ich_seq.bundle.Embedder", lambda *given: made.append(given))
    bundle = load_bundle(saved, CPU, engine)
    expected = replace(execution, engine=engine or "torch")
    assert [(e.spec, execution, device) for e, execution, device in made] == [
        (encoder.spec, expected, CPU) for encoder in headed_encoders
    ]
    assert bundle.card["execution"] == asdict(execution)


def test_a_loaded_bundle_is_ready_to_judge(saved):
    """Networks are in eval mode and frozen; the card holds the facts, the labels and the intended use."""
    bundle = load_bundle(saved, CPU)
    encoders = [embedder.encoder for embedder in bundle.embedders.values()]
    assert all(encoder.head is not None for encoder in encoders)
    for network in (*encoders, *bundle.models):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
    assert (len(encoders), len(bundle.models)) == (2, 2)
    assert bundle.card["labels"] == list(LABELS)
    assert bundle.card["training"] == {"studies": 7}
    assert bundle.card == json.loads((saved / CARD).read_text())
    assert bundle.card_sha256 == sha256_file(saved / CARD)
    assert "not a medical device" in bundle.card["intended_use"].lower()


def test_a_device_without_memory_is_no_fault_of_the_bundle(saved, monkeypatch):
    """Only what is wrong with the files asks for another training."""

    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("ich_seq.bundle.Embedder", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        load_bundle(saved, CPU)


def test_every_number_of_a_calibration_comes_back_to_the_last_digit(saved):
    """Of slices and of studies, as float64: thirds, tiny ones and those without an exact decimal as well."""
    card = json.loads((saved / CARD).read_text())["calibration"]
    assert card.keys() == {*LEVELS, "kernel"}
    loaded = load_bundle(saved, CPU).calibrations
    assert loaded.kernel.tobytes() == CALIBRATIONS.kernel.tobytes()
    assert card["kernel"] == CALIBRATIONS.kernel.tolist()
    for level in LEVELS:
        assert card[level].keys() == set(NUMBERS)
        for name in NUMBERS:
            numbers, meant = getattr(getattr(loaded, level), name), getattr(getattr(CALIBRATIONS, level), name)
            assert numbers.dtype == np.float64
            assert numbers.tobytes() == meant.tobytes()
            assert card[level][name] == meant.tolist()


def test_saving_twice_gives_the_same_bytes(saved, models, headed_encoders, execution, tmp_path):
    """The same networks and facts make the same files, and the card holds the hash of every one."""
    save(tmp_path, headed_encoders, models, execution, {"figures": {"rnn": None}, "training": {"studies": 7}})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in saved.iterdir()}
    card = json.loads((saved / CARD).read_text())
    hashes = {e["file"]: e["sha256"] for e in (*card["rnn"]["files"], *card["encoders"], card["familiar"])}
    assert not any("file_sha256" in entry for entry in card["encoders"])
    assert hashes == {p.name: sha256_file(p) for p in saved.glob("*.safetensors")}
    assert hashes.keys() == {*ENCODERS, *MODELS, FAMILIAR}
    assert card["execution"] == asdict(execution)


@pytest.mark.parametrize("killed", [False, True])
def test_a_smaller_bundle_in_the_place_of_a_larger_one_is_alone_there(
    root, models, headed_encoders, execution, views_of, killed
):
    """Networks of the older bundle are gone, also where a kill left it no card; a file of somebody else's stays."""
    (root / "mine.safetensors").write_bytes(b"precious")
    if killed:
        (root / CARD).unlink()
    save(root, headed_encoders[1:], models[:1], execution)
    assert {p.name for p in root.iterdir()} == {CARD, ENCODERS[0], MODELS[0], FAMILIAR, "mine.safetensors"}
    bundle = load_bundle(root, CPU)
    assert bundle.embedders[0].spec == headed_encoders[1].spec
    slices, _ = bundle.predict(views_of(3)[:1])
    assert np.isfinite(slices).all()


# What is refused


@pytest.mark.slow
@pytest.mark.parametrize("file", [*ENCODERS, *MODELS, FAMILIAR])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 1.0])
def test_one_flipped_bit_is_refused(root, file, share):
    """Wherever a bit is flipped in a network's file, header or numbers, the bundle is refused and the file named."""
    data = bytearray((root / file).read_bytes())
    data[round(share * (len(data) - 1))] ^= 1
    (root / file).write_bytes(data)
    with pytest.raises(ArtefactError, match=file):
        load_bundle(root, CPU)


@pytest.mark.parametrize("file", [*ENCODERS, "rnn-1.safetensors"])
def test_a_file_that_is_gone_is_named(root, file):
    """A network missing beside the card is refused by name."""
    (root / file).unlink()
    with pytest.raises(IchSeqError, match=file):
        load_bundle(root, CPU)


@pytest.mark.parametrize("files", [ENCODERS, MODELS], ids=["encoders", "models"])
def test_exchanged_networks_are_refused(root, files):
    """A sound network in another's place is not the one the card means."""
    a, b = (root / file for file in files)
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    with pytest.raises(ArtefactError, match="SHA-256"):
        load_bundle(root, CPU)


@pytest.mark.parametrize(
    "labels", [list(LABELS[::-1]), list(LABELS[:-1]), [*LABELS, "chronic"], None, "any", []], ids=str
)
def test_labels_in_another_order_are_refused(root, labels):
    """Columns mean labels by their order: any other list would silently name the wrong bleed."""
    edit(root, lambda card: card.update(labels=labels))
    with pytest.raises(ArtefactError, match="labels"):
        load_bundle(root, CPU)


@pytest.mark.parametrize("schema", ["ich-seq bundle 3", "ich-seq bundle 8", "ich-seq features 3", None, 3])
def test_another_schema_is_refused(root, schema):
    """A bundle of an older or later version, or another artefact, is refused with both schemas named."""
    edit(root, lambda card: card.update(schema=schema))
    with pytest.raises(ArtefactError, match="schema") as refusal:
        load_bundle(root, CPU)
    assert SCHEMA in str(refusal.value)


@pytest.mark.parametrize("schema", [4, 5, 6])
def test_a_bundle_of_a_schema_before_says_what_it_said(saved, root, views_of, schema):
    """What was familiar was another measure; before, slices were not smoothed, and cards knew no kinds and choices."""

    def age(card):
        card["schema"] = f"ich-seq bundle {schema}"
        if schema < 6:
            del card["calibration"]["kernel"]
        if schema == 4:
            del card["rnn"]["kind"]
            for encoder in card["encoders"]:
                del encoder["air_beyond"], encoder["late_pool"]

    edit(root, age)
    old, new = (load_bundle(folder, CPU) for folder in (root, saved))
    if schema < 6:
        new = replace(new, calibrations=replace(new.calibrations, kernel=NO_KERNEL))
    assert [e.spec for e in old.embedders.values()] == [e.spec for e in new.embedders.values()]
    views = views_of(5)
    for got, expected in zip(old.predict(views), new.predict(views), strict=True):
        assert (got == expected).all()
    assert old.novelty(views) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(familiar=None),
        lambda card: card["rnn"].update(kind="contextual"),
        lambda card: card["rnn"].update(kind="other"),
        lambda card: card["rnn"].update(kind=None),
        lambda card: card["encoders"][0].update(air_beyond=1),
    ],
)
def test_a_card_that_says_another_kind_than_its_files_are_is_refused(root, change):
    """And what is ours always knows what is familiar."""
    edit(root, change)
    with pytest.raises(ArtefactError, match=CARD):
        load_bundle(root, CPU)


def test_keys_of_a_card_that_are_not_known_are_left_alone(root):
    """Another version may say more."""
    edit(root, lambda card: card.update(more={"of": "it"}))
    assert load_bundle(root, CPU).card["more"] == {"of": "it"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\x00"])
def test_a_card_that_is_no_card_is_refused(root, text):
    """A card that is no JSON object is an ArtefactError that names it."""
    (root / CARD).write_text(text)
    with pytest.raises(ArtefactError, match=CARD):
        load_bundle(root, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "encoders 0",
        "encoders 1",
        "execution",
        "rnn",
        "familiar",
        "calibration",
        "calibration slices",
        "calibration studies",
    ],
)
def test_a_card_with_a_hole_is_refused(root, part):
    """Whichever entry of the networks' description is missing, the card is refused and never breaks the program."""
    name, _, number = part.partition(" ")

    def described(card):
        return card[name][int(number) if number.isdigit() else number] if number else card[name]

    whole = json.loads((root / CARD).read_text())
    assert described(whole)
    refused = set()
    for entry in described(whole):
        edit(root, lambda card, entry=entry: described(card).pop(entry))
        try:
            load_bundle(root, CPU)
        except ArtefactError:
            refused.add(entry)
        (root / CARD).write_text(json.dumps(whole))
    assert described(whole).keys() == refused


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda card: card.pop("encoders"), id="no encoders"),
        pytest.param(lambda card: card.update(encoders=[]), id="no encoder"),
        pytest.param(lambda card: card.update(encoders={}), id="encoders of no number"),
        pytest.param(lambda card: card.pop("rnn"), id="no rnn"),
        pytest.param(lambda card: card.update(encoders="x"), id="encoders of text"),
        pytest.param(lambda card: card.update(encoders=["x"]), id="encoder of text"),
        pytest.param(lambda card: card.update(rnn=[]), id="rnn of a list"),
        pytest.param(lambda card: card["encoders"][1].update(more=1), id="unknown entry"),
        pytest.param(lambda card: card["encoders"][0].update(mean=[]), id="no mean"),
        pytest.param(lambda card: card["encoders"][1].update(windows_hu=[[40, 80]]), id="other windows"),
        pytest.param(lambda card: card["encoders"][1].update(arch="test_convnext2"), id="another network"),
        pytest.param(lambda card: card["encoders"][1].update(sha256=None), id="no hash of the encoder"),
        pytest.param(lambda card: card["encoders"][0].update(head=False), id="no slice classifier"),
        pytest.param(lambda card: card["encoders"][0].update(dim=65), id="another width"),
        pytest.param(lambda card: [e.update(dim=65) for e in (*card["encoders"], card["rnn"])], id="no such width"),
        pytest.param(lambda card: card.pop("execution"), id="no execution"),
        pytest.param(lambda card: card.update(execution=[]), id="execution of a list"),
        pytest.param(lambda card: card["execution"].update(more=1), id="unknown part of the execution"),
        *(
            pytest.param(lambda card, wrong=wrong: card["execution"].update(wrong), id=f"execution {wrong}")
            for wrong in (
                {"engine": "abacus"},
                {"precision": "fp8"},
                {"views": 0},
                {"views": 9},
                {"views": "two"},
                {"batch_size": 0},
                {"batch_size": None},
            )
        ),
        pytest.param(lambda card: card["rnn"].update(dim=65), id="another input"),
        pytest.param(lambda card: card["rnn"].update(files=[]), id="no model"),
        pytest.param(lambda card: card["rnn"]["config"].update(hidden=9), id="another hidden"),
        pytest.param(lambda card: card["rnn"]["config"].update(layers=1), id="another layers"),
        pytest.param(lambda card: card["rnn"]["config"].update(hidden=0), id="senseless hidden"),
        pytest.param(lambda card: card["rnn"]["config"].update(more=0), id="unknown setting"),
        pytest.param(lambda card: card["rnn"]["files"][0].update(sha256=None), id="no hash of a model"),
        pytest.param(lambda card: card["rnn"]["files"][0].update(file=7), id="file of a number"),
        pytest.param(lambda card: card.pop("calibration"), id="no calibration"),
        pytest.param(lambda card: card.update(calibration=[]), id="calibration of a list"),
        pytest.param(lambda card: card["calibration"].update(patients={}), id="calibration of patients"),
        pytest.param(lambda card: card["calibration"].update(slices=[]), id="calibration of slices a list"),
        pytest.param(lambda card: card["calibration"].pop("kernel"), id="no kernel"),
        pytest.param(lambda card: card["calibration"].update(kernel=[]), id="kernel of no label"),
        pytest.param(lambda card: card["calibration"]["kernel"].pop(), id="kernel of five labels"),
        pytest.param(lambda card: card["calibration"]["kernel"][0].pop(), id="kernel of unequal reach"),
        pytest.param(lambda card: card["calibration"]["kernel"][0].__setitem__(0, -0.1), id="weight below 0"),
        pytest.param(lambda card: card["calibration"]["kernel"][0].__setitem__(0, 1.1), id="weight above 1"),
        pytest.param(
            lambda card: [w.append(0.0) for w in card["calibration"]["kernel"]], id="kernel that reaches further"
        ),
        pytest.param(lambda card: card.update(schema="ich-seq bundle 5") or card["rnn"].pop("kind"), id="5, no kind"),
        pytest.param(lambda card: card["calibration"]["kernel"][0].__setitem__(0, "0.1"), id="weight of a text"),
        pytest.param(lambda card: card["calibration"]["kernel"][0].__setitem__(0, float("nan")), id="no weight"),
    ],
)
def test_a_card_that_does_not_describe_its_networks_is_refused(root, change):
    """A description that does not fit the files, or vouches for none of them, is an ArtefactError."""
    load_bundle(root, CPU)
    edit(root, change)
    with pytest.raises(ArtefactError):
        load_bundle(root, CPU)


def one_wrong(value: object):
    """Make a change of a card's numbers: one of them, the last but one, is this instead."""
    return lambda numbers: [*numbers[:-2], value, numbers[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("share", one_wrong(1.001), id="share above 1"),
        pytest.param("share", one_wrong(-0.001), id="share below 0"),
        pytest.param("slope", one_wrong(0.0), id="slope of 0"),
        pytest.param("slope", one_wrong(-1.0), id="negative slope"),
        *(
            pytest.param(name, change, id=f"{name} {what}")
            for name in NUMBERS
            for what, change in {
                "not a number": one_wrong(float("nan")),
                "infinite": one_wrong(float("inf")),
                "true": one_wrong(True),
                "a text": one_wrong("0.5"),
                "null": one_wrong(None),
                "five": lambda numbers: numbers[:-1],
                "seven": lambda numbers: [*numbers, 0.5],
                "none": lambda _: [],
                "no list": lambda _: None,
                "one for all": lambda _: 0.5,
                "text": lambda _: "half",
                "nested": lambda numbers: [numbers],
                "by label": lambda numbers: dict(zip(LABELS, numbers, strict=True)),
            }.items()
        ),
    ],
)
def test_numbers_that_are_no_calibration_are_refused(root, level, name, change):
    """A share outside 0..1, a slope that turns the order round, anything but six finite numbers: an ArtefactError."""
    edit(root, lambda card: card["calibration"][level].update({name: change(card["calibration"][level][name])}))
    with pytest.raises(ArtefactError, match=CARD):
        load_bundle(root, CPU)


@pytest.mark.parametrize("level", LEVELS)
def test_a_calibration_with_more_than_its_three_numbers_is_refused(root, level):
    """A fourth list, of a later version perhaps, is not passed over in silence."""
    edit(root, lambda card: card["calibration"][level].update(offset=[0.0] * K))
    with pytest.raises(ArtefactError):
        load_bundle(root, CPU)


@pytest.mark.parametrize("level", LEVELS)
def test_shares_may_be_all_or_nothing(root, level):
    """The ends of 0..1 are shares like others."""
    edit(root, lambda card: card["calibration"][level].update(share=[0.0, 1.0] * 3))
    assert getattr(load_bundle(root, CPU).calibrations, level).share.tolist() == [0.0, 1.0] * 3


def test_networks_that_do_not_fit_together_are_refused(headed_encoders, execution, tmp_path):
    """Sequence models for embeddings of another width than the encoders' are refused when loaded, not when run."""
    save(tmp_path, headed_encoders, [randomised(headed_encoders[0].spec.dim + 1, 0)], execution)
    with pytest.raises(ArtefactError):
        load_bundle(tmp_path, CPU)


@pytest.mark.parametrize("bare", [0, 1])
def test_an_encoder_without_a_slice_classifier_is_refused(
    headed_encoders, tiny_encoder, models, execution, tmp_path, bare
):
    """Whichever encoder has no head there is no base for the GRU to correct: refused when loaded."""
    encoders = list(headed_encoders)
    encoders[bare] = tiny_encoder
    save(tmp_path, encoders, models, execution)
    with pytest.raises(ArtefactError, match="without a slice classifier"):
        load_bundle(tmp_path, CPU)


def test_a_head_that_the_card_promises_and_the_file_lacks_is_refused(
    headed_encoders, tiny_encoder, models, execution, tmp_path
):
    """A head is never made up: the right hash of a file without one does not help."""
    promised = SliceEncoder(tiny_encoder.network, replace(tiny_encoder.spec, head=True))
    encoders = [headed_encoders[0], promised]
    save(tmp_path, encoders, models, execution)
    with pytest.raises(ArtefactError):
        load_bundle(tmp_path, CPU)


@pytest.mark.parametrize("part", ["network", "head"])
def test_an_encoder_that_is_not_the_recorded_one_is_refused(headed_encoders, models, execution, tmp_path, part):
    """A bundle whose encoder's bytes, network or head, are not those its spec records cannot be used."""
    encoder = copy.deepcopy(headed_encoders[1])
    for parameter in getattr(encoder, part).parameters():
        parameter.data += 1
    save(tmp_path, [headed_encoders[0], encoder], models, execution)
    with pytest.raises(ArtefactError, match="SHA-256"):
        load_bundle(tmp_path, CPU)


def entry_of(card, name: str) -> dict[str, str]:
    """Return the card's entry of a file."""
    (entry,) = [e for e in (*card["encoders"], *card["rnn"]["files"]) if e["file"] == name]
    return entry


@pytest.mark.parametrize("name", [ENCODERS[0], ENCODERS[1], MODELS[0]])
@pytest.mark.parametrize("way", ["up", "absolute", "down"])
def test_a_card_cannot_reach_outside_its_folder(root, tmp_path, name, way):
    """A path in place of a file's name is refused, though a file of the right hash lies there."""
    (root / "below").mkdir()
    for folder in (tmp_path, root / "below"):
        shutil.copy(root / name, folder / name)
    path = {"up": f"../{name}", "absolute": str(tmp_path / name), "down": f"below/{name}"}[way]
    edit(root, lambda card: entry_of(card, name).update(file=path))
    with pytest.raises(ArtefactError, match="no plain file name"):
        load_bundle(root, CPU)


@pytest.mark.parametrize("name", [ENCODERS[1], MODELS[0]])
def test_a_pickle_under_another_name_is_never_executed(root, tmp_path, name):
    """A pickle named .safetensors, its hash in the card, is refused as no safetensors file; nothing in it ran."""
    target = tmp_path / "executed"
    torch.save({"weight": Gadget(target)}, tmp_path / "gadget.pt")
    torch.load(tmp_path / "gadget.pt", weights_only=False)
    assert target.exists()  # the gadget works
    target.unlink()
    shutil.copy(tmp_path / "gadget.pt", root / name)
    edit(root, lambda card: entry_of(card, name).update(sha256=sha256_file(root / name)))
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        load_bundle(root, CPU)
    assert not target.exists()


@pytest.mark.parametrize("number", [0, 1])
def test_a_card_never_leads_to_the_network(root, monkeypatch, number):
    """An encoder named by a hub's address in the card is refused without a connection being tried."""

    def no_network(*args, **named):
        pytest.fail("loading a bundle led to the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("socket.create_connection", no_network)
    edit(root, lambda card: card["encoders"][number].update(arch="hf-hub:someone/something"))
    with pytest.raises(IchSeqError):
        load_bundle(root, CPU)


def test_a_folder_without_a_card_is_no_bundle(tmp_path, root):
    """A folder that is missing, empty, a file, or a bundle that was never finished is a UsageError with the remedy."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    (root / CARD).unlink()
    for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "file", root):
        with pytest.raises(UsageError, match="is not a bundle") as refusal:
            load_bundle(path, CPU)
        assert str(path) in str(refusal.value)


def test_what_is_familiar_comes_back_and_tells_how_new_a_study_is(saved, headed_encoders, views_of):
    """Means, scales, axes and limit are those saved, and the bundle asks them of every network's view."""
    bundle, meant = load_bundle(saved, CPU), usual(headed_encoders)
    assert (bundle.familiar.mean == meant.mean).all()
    assert (bundle.familiar.scale == meant.scale).all()
    assert (bundle.familiar.axes == meant.axes).all()
    assert bundle.familiar.limit == meant.limit
    views = views_of(5)
    assert bundle.novelty(views) == pytest.approx(meant.novelty([np.asarray(v.features) for v in views]))


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        pytest.param(lambda axes: axes.flip(1), True, id="in-another-order"),
        pytest.param(lambda axes: torch.cat([torch.zeros_like(axes), axes], dim=1), True, id="some-are-0"),
        pytest.param(lambda axes: 1.01 * axes, False, id="too-long"),
        pytest.param(lambda axes: 2 * axes, False, id="of-length-2"),
        pytest.param(lambda axes: torch.cat([axes, axes[:, :1]], dim=1), False, id="twice-the-same"),
        pytest.param(lambda axes: torch.full_like(axes, torch.inf), False, id="no-numbers"),
        pytest.param(lambda axes: torch.zeros(len(axes), 300_000, axes.shape[2]), False, id="more-than-there-can-be"),
    ],
)
def test_axes_of_what_is_familiar_are_orthonormal(root, change, taken):
    """What lies off them would else be no distance, and could be less than nothing."""
    tensors = load_file(root / FAMILIAR)
    sha256 = write_tensors(root / FAMILIAR, tensors | {"axes": change(tensors["axes"]).contiguous()})
    edit(root, lambda card: card["familiar"].update(sha256=sha256))
    if taken:
        load_bundle(root, CPU)
        return
    with pytest.raises(ArtefactError, match="familiar"):
        load_bundle(root, CPU)


@pytest.mark.parametrize(
    ("training", "few"),
    [
        ({"positive_studies": dict(zip(LABELS, (0, 9, FEW_STUDIES, 400, 3, 27), strict=True))}, [0, 1, 4]),
        ({"positive_studies": {"any": 1, "chronic": 1}}, [5]),
        ({"positive_studies": dict(zip(LABELS, ("3", 3.0, None, True, [], {}), strict=True))}, []),
        ({"positive_studies": [1]}, []),
        ({}, []),
        ("none", []),
    ],
)
def test_labels_of_few_training_studies_are_hardly_learnt(root, training, few):
    """Those of less than FEW_STUDIES, as the card counts them; a card that counts none tells of none."""
    edit(root, lambda card: card.update(training=training))
    assert list(load_bundle(root, CPU).hardly_learnt) == [LABELS[k] for k in few]


def test_a_bundle_is_called_as_its_folder_is(root, monkeypatch):
    """However the folder is named."""
    assert load_bundle(root, CPU).name == root.name
    monkeypatch.chdir(root)
    assert load_bundle(Path(), CPU).name == root.name


@pytest.mark.parametrize("schema", [4, 5, 6, 7])
@pytest.mark.parametrize("familiar", ["x", 5, ["a"], {}, {"file": FAMILIAR, "sha256": "0" * 64, "limit": 1.0}])
def test_what_is_familiar_is_checked_of_every_schema(root, schema, familiar):
    """Of an older one too, though nothing comes of it: results vouch for that file."""

    def age(card):
        card.update(schema=f"ich-seq bundle {schema}", familiar=familiar)
        if schema < 6:
            del card["calibration"]["kernel"]

    edit(root, age)
    with pytest.raises(ArtefactError):
        load_bundle(root, CPU)


@pytest.mark.parametrize("limit", [0.0, -1.0, "1", None, 1])
def test_a_limit_that_is_none_is_refused(root, limit):
    """What tells strange studies is a number above 0."""
    edit(root, lambda card: card["familiar"].update(limit=limit))
    with pytest.raises(ArtefactError):
        load_bundle(root, CPU)


# ---- half precision ----


def test_half_precision_takes_half_the_space_and_says_nearly_the_same(
    saved, models, headed_encoders, execution, views_of, tmp_path
):
    """Files are half as large but for their headers; networks are single precision again when loaded."""
    save(tmp_path, headed_encoders, models, execution, half=True)
    for name in (*ENCODERS, *MODELS):
        assert (tmp_path / name).stat().st_size < 0.65 * (saved / name).stat().st_size
    whole, half = load_bundle(saved, CPU), load_bundle(tmp_path, CPU)
    for model in (*half.models, *(e.encoder for e in half.embedders.values())):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert [e.spec.sha256 for e in half.embedders.values()] == [sha256_file(tmp_path / name) for name in ENCODERS]
    for one, other in zip(whole.models, half.models, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a.half().float() if a.ndim > 1 else a, b)
    views = views_of(9)
    for one, other in zip(whole.predict(views), half.predict(views), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3)
        assert not np.array_equal(one, other)


def test_what_half_precision_cannot_hold_is_refused(models, headed_encoders, execution, tmp_path):
    """A weight of 70,000 would become infinite; the bundle is not written."""
    large = copy.deepcopy(models[0])
    with torch.no_grad():
        next(p for p in large.parameters() if p.ndim > 1).view(-1)[0] = 7e4
    with pytest.raises(UsageError, match="Half precision cannot hold"):
        save(tmp_path, headed_encoders, [large], execution, half=True)
    assert not (tmp_path / CARD).exists()

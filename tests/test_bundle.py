"""The bundle: what was saved is what is loaded, and whatever was touched since is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_seq import ArtefactError, IchSeqError, UsageError
from ich_seq.bundle import CARD, ENCODER, SCHEMA, Bundle, Shares, load_bundle, save_bundle
from ich_seq.config import Rnn
from ich_seq.encoder import embed
from ich_seq.files import sha256_file
from ich_seq.labels import LABELS
from ich_seq.model import SequenceModel
from ich_seq.weights import tensor_bytes

K = len(LABELS)
CPU = torch.device("cpu")
RNN = Rnn(projection=8, hidden=8, layers=2)
SHARES = Shares(np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.3]), np.array([1.0, 0.1, 0.0, 0.5, 0.25, 0.75]))


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
def models(tiny_encoder) -> list[SequenceModel]:
    first, second = (randomised(tiny_encoder.spec.dim, seed) for seed in (0, 1))
    second.base.load_state_dict(first.base.state_dict())
    return [first, second]


@pytest.fixture(scope="module")
def saved(tiny_encoder, models, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    save_bundle(
        root,
        encoder=tiny_encoder.spec,
        encoder_weights=tensor_bytes(tiny_encoder.network.state_dict()),
        models=models,
        shares=SHARES,
        facts={"training": {"studies": 7}, "figures": {"rnn": None}},
    )
    return root


@pytest.fixture
def root(saved, tmp_path) -> Path:
    """A copy of the bundle to do harm to."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def edit(root: Path, change) -> None:
    card = json.loads((root / CARD).read_text())
    change(card)
    (root / CARD).write_text(json.dumps(card))


def test_a_loaded_bundle_says_exactly_what_the_saved_networks_say(saved, models, tiny_encoder, make_study):
    """Encoder and sequence models come back bit for bit: the same embeddings, the same probabilities."""
    bundle = load_bundle(saved, CPU)
    hu = torch.from_numpy(np.random.default_rng(0).normal(40, 60, (4, 32, 32)).astype(np.float32))
    assert torch.equal(embed(bundle.encoder, hu), embed(tiny_encoder, hu))
    assert bundle.encoder.spec == tiny_encoder.spec
    original = Bundle(encoder=tiny_encoder, models=tuple(models), shares=SHARES, card={}, card_sha256="")
    for slices in (1, 2, 12):
        study = make_study(f"study of {slices}", slices)
        for got, expected in zip(bundle.predict(study), original.predict(study), strict=True):
            assert got.dtype == np.float64
            assert np.array_equal(got, expected)


def test_a_prediction_is_the_blend_of_the_base_and_the_mean_of_the_models(saved, models, make_study):
    """Base and each model by itself, averaged and blended by hand, each label at its share: slices and study."""
    study = make_study("a", 5)
    features, positions = torch.from_numpy(study.features).float()[None], torch.from_numpy(study.positions_mm)[None]
    with torch.no_grad():
        said = [model(features, positions, torch.tensor([5])) for model in models]
    slices, whole = load_bundle(saved, CPU).predict(study)
    assert slices.shape == (5, K)
    assert whole.shape == (K,)
    mean_slices = sum(s.slices[0].double().numpy() for s in said) / len(models)
    mean_study = sum(s.studies[0].double().numpy() for s in said) / len(models)
    weight, bias = (t.double().numpy() for t in (models[0].base.weight, models[0].base.bias))
    base = study.features.astype(np.float64) @ weight.T + bias
    for said_by_bundle, plain, mean, shares in (
        (slices, base, mean_slices, SHARES.slices),
        (whole, base.max(axis=0), mean_study, SHARES.studies),
    ):
        blended = plain * (1 - shares) + mean * shares
        assert said_by_bundle == pytest.approx(1 / (1 + np.exp(-blended)), rel=1e-5)
        assert np.abs(mean - plain).max() > 0.01  # the GRU says something of its own
    assert (said[0].slices - said[1].slices).abs().max() > 0.01  # two models, not one twice


def test_a_loaded_bundle_is_ready_to_judge(saved):
    """Networks are in eval mode and frozen; the card holds the facts, the labels, the shares and the intended use."""
    bundle = load_bundle(saved, CPU)
    for network in (bundle.encoder, *bundle.models):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
    assert len(bundle.models) == 2
    assert bundle.card["labels"] == list(LABELS)
    assert bundle.card["training"] == {"studies": 7}
    assert bundle.card["blend"] == {"slices": SHARES.slices.tolist(), "studies": SHARES.studies.tolist()}
    for loaded, meant in zip(bundle.shares, SHARES, strict=True):
        assert loaded.dtype == np.float64
        assert np.array_equal(loaded, meant)
    assert bundle.card == json.loads((saved / CARD).read_text())
    assert bundle.card_sha256 == sha256_file(saved / CARD)
    assert "not a medical device" in bundle.card["intended_use"].lower()


def test_saving_twice_gives_the_same_bytes(saved, models, tiny_encoder, tmp_path):
    """The same networks and facts make the same files, and the card holds the hash of every one."""
    weights = tensor_bytes(tiny_encoder.network.state_dict())
    facts = {"figures": {"rnn": None}, "training": {"studies": 7}}
    save_bundle(tmp_path, encoder=tiny_encoder.spec, encoder_weights=weights, models=models, shares=SHARES, facts=facts)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in saved.iterdir()}
    card = json.loads((saved / CARD).read_text())
    hashes = {entry["file"]: entry["sha256"] for entry in card["rnn"]["files"]}
    hashes[card["encoder"]["file"]] = card["encoder"]["sha256"]
    assert "file_sha256" not in card["encoder"]
    assert hashes == {p.name: sha256_file(p) for p in saved.glob("*.safetensors")}


# What is refused


@pytest.mark.parametrize("file", [ENCODER, "rnn-0.safetensors", "rnn-1.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 1.0])
def test_one_flipped_bit_is_refused(root, file, share):
    """Wherever a bit is flipped in a network's file, header or numbers, the bundle is refused and the file named."""
    data = bytearray((root / file).read_bytes())
    data[round(share * (len(data) - 1))] ^= 1
    (root / file).write_bytes(data)
    with pytest.raises(ArtefactError, match=file):
        load_bundle(root, CPU)


@pytest.mark.parametrize("file", [ENCODER, "rnn-1.safetensors"])
def test_a_file_that_is_gone_is_named(root, file):
    """A network missing beside the card is refused by name."""
    (root / file).unlink()
    with pytest.raises(IchSeqError, match=file):
        load_bundle(root, CPU)


def test_exchanged_networks_are_refused(root):
    """A sound network in another's place is not the one the card means."""
    a, b = root / "rnn-0.safetensors", root / "rnn-1.safetensors"
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


@pytest.mark.parametrize("schema", ["ich-seq bundle 2", "ich-seq features 1", None, 1])
def test_another_schema_is_refused(root, schema):
    """A bundle of a later version, or another artefact, is refused with both schemas named."""
    edit(root, lambda card: card.update(schema=schema))
    with pytest.raises(ArtefactError, match="schema") as refusal:
        load_bundle(root, CPU)
    assert SCHEMA in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\x00"])
def test_a_card_that_is_no_card_is_refused(root, text):
    """A card that is no JSON object is an ArtefactError that names it."""
    (root / CARD).write_text(text)
    with pytest.raises(ArtefactError, match=CARD):
        load_bundle(root, CPU)


@pytest.mark.parametrize("part", ["encoder", "rnn", "blend"])
def test_a_card_with_a_hole_is_refused(root, part):
    """Whichever entry of the networks' description is missing, the card is refused and never breaks the program."""
    whole = json.loads((root / CARD).read_text())
    refused = set()
    for name in whole[part]:
        edit(root, lambda card, name=name: card[part].pop(name))
        try:
            load_bundle(root, CPU)
        except ArtefactError:
            refused.add(name)
        (root / CARD).write_text(json.dumps(whole))
    assert whole[part].keys() == refused


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda card: card.pop("encoder"), id="no encoder"),
        pytest.param(lambda card: card.pop("rnn"), id="no rnn"),
        pytest.param(lambda card: card.update(encoder="x"), id="encoder of text"),
        pytest.param(lambda card: card.update(rnn=[]), id="rnn of a list"),
        pytest.param(lambda card: card["encoder"].update(more=1), id="unknown entry"),
        pytest.param(lambda card: card["encoder"].update(mean=[]), id="no mean"),
        pytest.param(lambda card: card["encoder"].update(windows_hu=[[40, 80]]), id="other windows"),
        pytest.param(lambda card: card["encoder"].update(arch="test_convnext2"), id="another network"),
        pytest.param(lambda card: card["encoder"].update(sha256=None), id="no hash of the encoder"),
        pytest.param(lambda card: card["encoder"].update(dim=65), id="another width"),
        pytest.param(lambda card: card["rnn"].update(dim=65), id="another input"),
        pytest.param(lambda card: card["rnn"].update(files=[]), id="no model"),
        pytest.param(lambda card: card["rnn"]["config"].update(hidden=9), id="another hidden"),
        pytest.param(lambda card: card["rnn"]["config"].update(layers=1), id="another layers"),
        pytest.param(lambda card: card["rnn"]["config"].update(hidden=0), id="senseless hidden"),
        pytest.param(lambda card: card["rnn"]["config"].update(more=0), id="unknown setting"),
        pytest.param(lambda card: card["rnn"]["files"][0].update(sha256=None), id="no hash of a model"),
        pytest.param(lambda card: card["rnn"]["files"][0].update(file=7), id="file of a number"),
        pytest.param(lambda card: card["encoder"].pop("batch_size"), id="no batch"),
        pytest.param(lambda card: card.pop("blend"), id="no blend"),
        pytest.param(lambda card: card.update(blend=[]), id="blend of a list"),
        *(
            pytest.param(
                lambda card, level=level, shares=shares: card["blend"].update({level: shares}), id=f"{level} {what}"
            )
            for level in Shares._fields
            for what, shares in {
                "above 1": [0.5] * 5 + [1.001],
                "below 0": [-0.001] + [0.5] * 5,
                "not a number": [0.5] * 5 + [float("nan")],
                "five": [0.5] * 5,
                "seven": [0.5] * 7,
                "none": [],
                "null": None,
                "one for all": 0.5,
                "text": "half",
                "nested": [[0.5] * 6],
            }.items()
        ),
    ],
)
def test_a_card_that_does_not_describe_its_networks_is_refused(root, change):
    """A description that does not fit the files, or vouches for none of them, is an ArtefactError."""
    load_bundle(root, CPU)
    edit(root, change)
    with pytest.raises(ArtefactError):
        load_bundle(root, CPU)


def test_networks_that_do_not_fit_together_are_refused(tiny_encoder, tmp_path):
    """Sequence models for embeddings of another width than the encoder's are refused when loaded, not when run."""
    save_bundle(
        tmp_path,
        encoder=tiny_encoder.spec,
        encoder_weights=tensor_bytes(tiny_encoder.network.state_dict()),
        models=[randomised(tiny_encoder.spec.dim + 1, 0)],
        shares=SHARES,
        facts={},
    )
    with pytest.raises(ArtefactError):
        load_bundle(tmp_path, CPU)


def test_an_encoder_that_is_not_the_recorded_one_is_refused(tiny_encoder, models, tmp_path):
    """A bundle whose encoder's bytes are not those its spec records cannot be used."""
    tensors = {n: t + 1 if t.is_floating_point() else t for n, t in tiny_encoder.network.state_dict().items()}
    save_bundle(
        tmp_path,
        encoder=tiny_encoder.spec,
        encoder_weights=tensor_bytes(tensors),
        models=models,
        shares=SHARES,
        facts={},
    )
    with pytest.raises(ArtefactError, match="SHA-256"):
        load_bundle(tmp_path, CPU)


@pytest.mark.parametrize("network", ["encoder", "rnn"])
@pytest.mark.parametrize("way", ["up", "absolute", "down"])
def test_a_card_cannot_reach_outside_its_folder(root, tmp_path, network, way):
    """A path in place of a file's name is refused, though a file of the right hash lies there."""
    name = ENCODER if network == "encoder" else "rnn-0.safetensors"
    (root / "below").mkdir()
    for folder in (tmp_path, root / "below"):
        shutil.copy(root / name, folder / name)
    path = {"up": f"../{name}", "absolute": str(tmp_path / name), "down": f"below/{name}"}[way]
    edit(root, lambda card: (card["encoder"] if network == "encoder" else card["rnn"]["files"][0]).update(file=path))
    with pytest.raises(ArtefactError, match="no plain file name"):
        load_bundle(root, CPU)


@pytest.mark.parametrize("network", ["encoder", "rnn"])
def test_a_pickle_under_another_name_is_never_executed(root, tmp_path, network):
    """A pickle named .safetensors, its hash in the card, is refused as no safetensors file; nothing in it ran."""
    target = tmp_path / "executed"
    name = ENCODER if network == "encoder" else "rnn-0.safetensors"
    torch.save({"weight": Gadget(target)}, tmp_path / "gadget.pt")
    torch.load(tmp_path / "gadget.pt", weights_only=False)
    assert target.exists()  # the gadget works
    target.unlink()
    shutil.copy(tmp_path / "gadget.pt", root / name)
    sha256 = sha256_file(root / name)
    edit(
        root, lambda card: (card["encoder"] if network == "encoder" else card["rnn"]["files"][0]).update(sha256=sha256)
    )
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        load_bundle(root, CPU)
    assert not target.exists()


def test_a_card_never_leads_to_the_network(root, monkeypatch):
    """An encoder named by a hub's address in the card is refused without a connection being tried."""

    def no_network(*args, **named):
        pytest.fail("loading a bundle led to the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("socket.create_connection", no_network)
    edit(root, lambda card: card["encoder"].update(arch="hf-hub:someone/something"))
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

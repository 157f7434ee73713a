"""The library of weights: what goes in is checked, what is in is known by its hash, what comes out was meant."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import published_weights as published
import pytest
import timm
import torch
from attacks.tiny_bundle import write_tiny_bundle
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ich_seq import ArtefactError, UsageError
from ich_seq.bundle import load_bundle
from ich_seq.cli import cli
from ich_seq.config import Config
from ich_seq.encoder import build_encoder
from ich_seq.files import MAX_WHOLE_BYTES, sha256_file
from ich_seq.phantom import write_dataset
from ich_seq.prediction import predict
from ich_seq.weight_library import (
    VARIABLE,
    bundle_folder,
    damages,
    library_folder,
    names,
    new_entry,
    read_entry,
)
from ich_seq.weight_sources import add_weights

ARCH = "test_convnext"


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    """An empty library of this test's own."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture(scope="module")
def network():
    """A network of timm's with random weights, its classifier and all."""
    torch.manual_seed(3)
    return timm.create_model(ARCH, pretrained=False)


@pytest.fixture(scope="module")
def file(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("files") / "network.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


def encoder(weights: str, arch: str = ARCH):
    return build_encoder(Config.model_validate({"slices": {"size": 32}, "encoder": {"arch": arch, "weights": weights}}))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_the_library_lies_in_the_user_s_data_folder(monkeypatch, tmp_path):
    """Unless the environment says where."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert library_folder() == tmp_path / "ich-seq" / "weights"


def test_weights_of_a_file_are_kept_byte_for_byte_and_can_be_named(library, file, network):
    """The SHA-256 is the one that whoever published the file has, and the encoder has the file's weights."""
    entry = add_weights("mine", str(file), arch=ARCH, licence="CC0", notes="for a test")
    assert entry == read_entry(library / "mine")
    assert entry.files == {"encoder.safetensors": sha256_file(file)}
    assert (entry.kind, entry.arch, entry.licence, entry.notes) == ("encoder", ARCH, "CC0", "for a test")
    built = encoder("mine")
    assert built.spec.weights == f"file, sha256 {sha256_file(file)}"  # so that train-rnn asks whom it has seen
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in list(built.network.state_dict().items())[2:])
    assert damages(library / "mine") == []


def test_a_file_of_the_same_name_goes_before_the_library(library, file, monkeypatch, tmp_path):
    """A path that is there is a path."""
    add_weights("mine", str(file), arch=ARCH)
    torch.manual_seed(5)
    save_file(timm.create_model(ARCH).state_dict(), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert encoder("mine").spec.weights == f"file, sha256 {sha256_file(tmp_path / 'mine')}"


def test_weights_that_were_changed_are_not_used(library, file):
    """The record's SHA-256 is held to whenever they are read."""
    add_weights("mine", str(file), arch=ARCH)
    path = library / "mine" / "encoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="SHA-256 differs"):
        encoder("mine")
    assert damages(library / "mine") == ["encoder.safetensors was changed (SHA-256 differs)"]


def test_weights_are_of_one_network_and_of_one_kind(library, file, bundle):
    """Named for what they are not, they are refused with the remedy."""
    add_weights("mine", str(file), arch=ARCH)
    add_weights("whole", str(bundle))
    with pytest.raises(UsageError, match=r'encoder\.arch = "test_convnext"'):
        encoder("mine", "test_resnet")
    with pytest.raises(UsageError, match="predict --bundle"):
        encoder("whole")
    with pytest.raises(UsageError, match=r"encoder\.weights"):
        bundle_folder(Path("mine"))


def test_a_bundle_of_the_library_is_found_by_its_name(library, bundle, monkeypatch, tmp_path):
    """Where no folder has that name; its card must be the one that was added."""
    entry = add_weights("whole", str(bundle), notes="ours")
    assert entry.kind == "bundle"
    assert files_of(bundle).items() <= files_of(library / "whole").items()
    assert bundle_folder(Path("whole")) == library / "whole"
    cpu = torch.device("cpu")
    assert load_bundle(bundle_folder(Path("whole")), cpu).card_sha256 == load_bundle(bundle, cpu).card_sha256
    assert bundle_folder(Path("nothing")) == Path("nothing")
    card = library / "whole" / "bundle.json"
    card.write_text(card.read_text() + " ")
    with pytest.raises(ArtefactError, match="not what was added"):
        bundle_folder(Path("whole"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole").mkdir()
    assert bundle_folder(Path("whole")) == Path("whole")


def test_predict_takes_a_bundle_by_its_name(library, bundle, tmp_path):
    """The tables are those of the folder that was added."""
    add_weights("whole", str(bundle))
    drawn = write_dataset(tmp_path, n_studies=1, matrix=64)
    for given, out in (("whole", "by_name"), (bundle, "by_folder")):
        predict(drawn.dicom, given, tmp_path / out, workers=0, report=False)
    one, other = (json.loads((tmp_path / out / "run.json").read_text()) for out in ("by_name", "by_folder"))
    assert (one.pop("bundle"), other.pop("bundle")) == ("whole", bundle.name)
    assert one == other


def test_published_weights_become_a_bundle(library, tmp_path):
    """Recognised by their folder, with source and licence."""
    given = published.write(tmp_path / "given", arch=ARCH, size=32, hidden=4, projection=6, attention=3)
    entry = add_weights("ianpan", str(given))
    assert (entry.kind, entry.arch, entry.licence) == ("bundle", ARCH, "MIT")
    assert entry.source.startswith("ianpan/ct-head-hemorrhage-detection")
    assert load_bundle(bundle_folder(Path("ianpan")), torch.device("cpu")).familiar is None


@pytest.mark.parametrize("change", ["lacks", "more", "shape", "nan"])
def test_every_tensor_must_fit(library, file, tmp_path, change):
    """None may lack, be unknown, of another shape or no number; the library stays empty."""
    tensors = load_file(file)
    name = "stages.1.blocks.0.mlp.fc1.weight"
    if change == "lacks":
        del tensors[name]
    elif change == "more":
        tensors["stages.9"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(2, 2) if change == "shape" else tensors[name] * torch.nan
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ArtefactError, match=r"bad\.safetensors do"):
        add_weights("bad", str(tmp_path / "bad.safetensors"), arch=ARCH)
    assert files_of(library) == {}


@pytest.mark.parametrize("arch", [ARCH, "test_vit"])
def test_networks_of_any_number_of_channels_are_taken(library, tmp_path, arch):
    """A first layer of nine channels is as good as one of three, and it need not be the first tensor."""
    for channels in (3, 9):
        given = tmp_path / f"of-{channels}.safetensors"
        save_file(timm.create_model(arch, in_chans=channels, num_classes=6).state_dict(), given)
        assert add_weights(f"of-{channels}", str(given), arch=arch).arch == arch


@pytest.mark.parametrize("shape", [(2, 2), (32, 0, 4, 4), (0, 10**12, 4, 4)])
def test_a_first_layer_of_no_network_is_refused(library, file, tmp_path, shape):
    """Whatever number of channels it claims: no more is built than there are values in the file."""
    tensors = load_file(file) | {"stem.0.weight": torch.zeros(shape)}
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ArtefactError, match=r"bad\.safetensors do not fit"):
        add_weights("bad", str(tmp_path / "bad.safetensors"), arch=ARCH)
    assert files_of(library) == {}


def test_a_file_that_cannot_be_read_whole_is_refused_before_it_is_copied(library, tmp_path):
    """More than 2 GiB are never taken; the refusal names the file that was given."""
    with (tmp_path / "long.safetensors").open("wb") as long:
        long.truncate(MAX_WHOLE_BYTES + 1)
    with pytest.raises(UsageError, match=r"Cannot read .*long\.safetensors: more than"):
        add_weights("long", str(tmp_path / "long.safetensors"), arch=ARCH)
    assert files_of(library) == {}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PTH"])
def test_pickles_are_refused_with_the_remedy_and_never_opened(library, tmp_path, suffix):
    """By their name; and by their content, whatever they are named."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for name, error in ((f"weights{suffix}", UsageError), ("weights.safetensors", ArtefactError)):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(error, match="save_file"):
            add_weights("trap", str(tmp_path / name), arch=ARCH)
    assert not (tmp_path / "sprung").exists()
    assert files_of(library) == {}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "A", "ä", "a b", ".hidden", "a" * 65, "hub", "random", "a.ich-seq-partial"]
)
def test_names_are_plain(library, file, name):
    """A name is one of a folder, and means nothing else as encoder.weights."""
    with pytest.raises(UsageError, match="name"):
        add_weights(name, str(file), arch=ARCH)
    assert not library.exists() or files_of(library) == {}


@pytest.mark.parametrize(
    ("source", "arch", "told"),
    [
        ("nowhere.safetensors", ARCH, "Cannot read"),
        ("no-such-folder", None, "it is not there"),
        ("no\0where", ARCH, "Cannot read"),
        ("x" * 5000, ARCH, "Cannot read"),
        ("{file}", None, "--arch"),
        ("{file}", "no such network", "timm knows no network"),
        ("{folder}", None, "no folder of weights"),
    ],
)
def test_sources_that_are_none_are_refused(library, file, tmp_path, source, arch, told):
    """With what is wanted instead; the library stays empty."""
    with pytest.raises(UsageError, match=told):
        add_weights("mine", source.format(file=file, folder=tmp_path), arch=arch)
    assert files_of(library) == {}


def test_a_name_that_is_taken_stays_unless_it_may_be_replaced(library, file, bundle):
    """And what cannot be added replaces nothing."""
    add_weights("mine", str(file), arch=ARCH)
    before = files_of(library)
    with pytest.raises(UsageError, match="--replace"):
        add_weights("mine", str(bundle))
    with pytest.raises(UsageError, match="Cannot read"):
        add_weights("mine", "nowhere", arch=ARCH, replace=True)
    assert files_of(library) == before
    assert add_weights("mine", str(bundle), replace=True).kind == "bundle"
    assert damages(library / "mine") == []


def fill(folder: Path, text: str) -> None:
    (folder / "it").write_text(text)


def test_a_replacement_that_is_killed_halfway_loses_nothing(library, monkeypatch):
    """Between the two renames the old entry lies aside; the next addition brings it back."""
    with new_entry(library, "a", replace=False) as folder:
        fill(folder, "old")
    plain, calls = Path.rename, []

    def dying(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(KeyboardInterrupt), new_entry(library, "a", replace=True) as folder:
        fill(folder, "new")
    monkeypatch.setattr(Path, "rename", plain)
    assert names(library) == []
    shutil.copytree(library / ".a.replaced", library / ".c.staged")  # what a kill leaves of an addition
    with new_entry(library, "b", replace=False) as folder:
        fill(folder, "other")
    assert files_of(library) == {"a/it": b"old", "b/it": b"other"}


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(schema="ich-seq weights 0"),
        lambda record: record.pop("kind"),
        lambda record: record.update(kind="model"),
        lambda record: record.update(name="other"),
        lambda record: record.update(files={}),
        lambda record: record.update(files={"encoder.safetensors": 7}),
        lambda record: record["files"].update({"../outside": "0" * 64}),
        lambda record: record.update(more=1),
    ],
)
def test_a_record_that_is_none_is_damage_and_not_a_bug(library, file, change):
    """Whatever stands in it, and it never leads out of its folder."""
    add_weights("mine", str(file), arch=ARCH)
    path = library / "mine" / "weights.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ArtefactError, match="add the weights again"):
        encoder("mine")
    assert len(damages(library / "mine")) == 1


def test_verify_tells_of_files_that_lack_and_that_are_too_many(library, file, bundle):
    """All that is wrong is said, of each entry."""
    add_weights("mine", str(file), arch=ARCH)
    add_weights("whole", str(bundle))
    (library / "mine" / "more").touch()
    (library / "whole" / "rnn-0.safetensors").unlink()
    assert damages(library / "mine") == ["more does not belong there"]
    (told,) = damages(library / "whole")
    assert told.startswith("rnn-0.safetensors cannot be read")


def test_the_commands_say_what_there_is_and_what_is_damaged(library, file):
    """`list` and `verify`, for people and machines; verify ends with 2 where anything is damaged."""
    run = CliRunner().invoke
    told = run(cli, ["weights", "list"]).output
    assert "No weights" in told
    assert "ct-ich: bundle, comes with ich-seq" in told
    added = run(cli, ["weights", "add", "mine", str(file), "--arch", ARCH])
    assert added.exit_code == 0, added.output
    assert 'encoder.weights = "mine"' in added.output
    (told,) = json.loads(run(cli, ["weights", "list", "--json"]).output)["weights"]
    assert told == {"name": "mine", **{k: told[k] for k in told if k != "name"}}
    assert told["files"]["encoder.safetensors"] == sha256_file(file)
    sound = run(cli, ["weights", "verify"])
    assert (sound.exit_code, sound.output) == (0, "mine: as it was added\n")
    (library / "mine" / "encoder.safetensors").write_bytes(b"")
    damaged = run(cli, ["weights", "verify", "--json"])
    assert damaged.exit_code == 2
    assert json.loads(damaged.output)["damaged"]["mine"]
    unknown = run(cli, ["weights", "verify", "mime"])
    assert unknown.exit_code == 2
    assert "there are mine" in unknown.output
    (library / "mine" / "weights.json").write_text("{")
    assert "mine: damaged" in run(cli, ["weights", "list"]).output


# The hub: its client's own cache, as it lies on the disk, stands in for the network, which is shut


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's client, which may ask nobody."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("ich_seq.weight_sources.ask_hub_once", lambda: None)
    monkeypatch.setattr("ich_seq.weights.ask_hub_once", lambda: None)
    return tmp_path / "hub"


def test_a_repository_of_the_hub_is_taken_from_its_cache(library, hub):
    """As the client laid it there; the entry says which commit it was."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = hub / "models--someone--some-model"
    given = cached / "snapshots" / commit
    given.parent.mkdir(parents=True)
    published.write(given, arch=ARCH, size=32, hidden=4, projection=6, attention=3)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    entry = add_weights("fetched", "hub:someone/some-model")
    assert entry.source == f"hub:someone/some-model@{commit}"
    assert entry.kind == "bundle"


@pytest.mark.parametrize("source", ["hub:someone/some-model", f"hub:{ARCH}.r160_in1k"])
def test_what_the_hub_does_not_give_is_refused_with_the_remedy(library, hub, source):
    """Offline and not in the cache: the library stays empty."""
    with pytest.raises(UsageError, match="Offline"):
        add_weights("fetched", source)
    assert files_of(library) == {}


def test_a_folder_of_timm_s_says_which_network_it_is(library, file, tmp_path):
    """config.json and model.safetensors, as the hub has them."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ARCH}))
    shutil.copy(file, tmp_path / "model.safetensors")
    entry = add_weights("timm", str(tmp_path))
    assert (entry.arch, entry.licence) == (ARCH, "apache-2.0")


def test_the_hub_is_asked_for_only_where_the_source_says_so(library, file, monkeypatch):
    """Any other source leaves the client's own switch as it was."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("ich_seq.commands.OFFLINE_ANYWAY", False)
    CliRunner().invoke(cli, ["weights", "add", "mine", str(file), "--arch", ARCH])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr("ich_seq.weight_sources.add_weights", lambda *_, **__: read_entry(library / "mine"))
    CliRunner().invoke(cli, ["weights", "add", "other", "hub:someone/something"])
    assert "HF_HUB_OFFLINE" not in os.environ

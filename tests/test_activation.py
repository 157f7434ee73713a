"""Where in a slice an encoder finds what it says: places add up to the logit, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from ich_seq import windows
from ich_seq.activation import activation_maps
from ich_seq.config import Config
from ich_seq.encoder import EncoderSpec, SliceEncoder, build_encoder, ensemble_of, new_head, with_head
from ich_seq.labels import LABELS

K = len(LABELS)
MEAN_OVER_PLACES = ["resnet18", "tf_efficientnet_lite0", "test_resnet", "test_efficientnet", "test_byobnet"]
SIZE = 64


def headed(arch: str, size: int = SIZE, **slices) -> SliceEncoder:
    """A timm network of random weights with a random head."""
    chosen = {"slices": {"size": size, **slices}, "encoder": {"arch": arch, "weights": "random", "seed": 0}}
    encoder, rng = build_encoder(Config.model_validate(chosen)), np.random.default_rng(1)
    weight = rng.normal(0, 0.3, (K, encoder.spec.dim)).astype(np.float32)
    return with_head(encoder, weight, rng.normal(size=K).astype(np.float32))


def slices_of(count: int, size: int = SIZE, neighbours: int = 1, seed: int = 0) -> torch.Tensor:
    """HU of slices with their neighbours, (M, J, S, S): air, brain, blood and bone at random."""
    hu = np.random.default_rng(seed).normal(40, 60, (count, neighbours, size, size))
    return torch.from_numpy(hu.astype(np.float32))


def logits_of(encoder: SliceEncoder, hu: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return encoder.head(encoder(hu)).numpy()


def features_of(encoder: SliceEncoder, hu: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return encoder.feature_map(windows.apply(hu, encoder.spec.windows_hu)).numpy()


@pytest.mark.parametrize("arch", MEAN_OVER_PLACES)
def test_the_places_and_the_bias_add_up_to_the_logit(arch):
    """Of every slice and label: the sum of its map and the head's bias are the logit of the forward pass."""
    encoder, hu = headed(arch), slices_of(3)
    maps, logits = activation_maps(encoder, hu), logits_of(encoder, hu)
    assert (maps.dtype, maps.shape[:2]) == (np.float32, (3, K))
    assert logits.std() > 0.1  # else a map of zeros would do
    assert maps.sum(axis=(2, 3)) + encoder.head.bias.numpy() == pytest.approx(logits, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("neighbours", [[0], [-1, 0, 1]])
def test_they_add_up_with_neighbours_and_several_windows(neighbours):
    """What a slice is shown beside itself, and through which windows, changes nothing of it."""
    encoder = headed("test_resnet", neighbours=neighbours, windows_hu=[(40, 80), (80, 200)])
    hu = slices_of(2, neighbours=len(neighbours))
    expected = pytest.approx(logits_of(encoder, hu), rel=1e-4, abs=1e-4)
    assert activation_maps(encoder, hu).sum(axis=(2, 3)) + encoder.head.bias.numpy() == expected


@pytest.mark.parametrize("arch", ["resnet18", "test_efficientnet"])
def test_behind_a_mean_it_is_the_class_activation_map(arch):
    """Place by place: the features there by the head's weights of the label, divided by the number of places."""
    encoder, hu = headed(arch, size=96), slices_of(2, size=96)
    seen, weight = features_of(encoder, hu), encoder.head.weight.numpy()
    maps = activation_maps(encoder, hu)
    assert maps.shape == (2, K, 3, 3)
    assert maps == pytest.approx(np.einsum("kc,mchw->mkhw", weight, seen) / 9, rel=1e-3, abs=1e-5)


def small_swin() -> SliceEncoder:
    """A Swin, whose features come with the channels last, far smaller than any timm has a name for."""
    torch.manual_seed(0)
    ones = (1, 1, 1, 1)
    network = SwinTransformer(img_size=96, window_size=3, embed_dim=8, depths=ones, num_heads=ones, num_classes=0)
    spec = replace(headed("test_resnet").spec, arch="swin", size=96, dim=64, head=True)
    head, rng = new_head(64), np.random.default_rng(1)
    head.weight.data = torch.from_numpy(rng.normal(0, 0.3, (K, 64)).astype(np.float32))
    return SliceEncoder(network, spec, head).eval().requires_grad_(False)


def test_of_a_network_with_its_channels_last_the_places_are_told_from_the_channels():
    """A Swin's map has rows and columns of places, and they too add up to the logit."""
    encoder, hu = small_swin(), slices_of(2, size=96)
    assert features_of(encoder, hu).shape == (2, 3, 3, 64)
    maps, logits = activation_maps(encoder, hu), logits_of(encoder, hu)
    assert maps.shape == (2, K, 3, 3)
    assert logits.std() > 0.1
    assert maps.sum(axis=(2, 3)) + encoder.head.bias.numpy() == pytest.approx(logits, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("arch", "channels"), [("test_mambaout", -1), ("test_convnext", 1)])
def test_a_network_that_does_more_than_take_the_mean_has_a_map_too(arch, channels):
    """Behind the mean comes a layer norm: shares need not add up, but each place has one, whichever axis is which."""
    encoder, hu = headed(arch, size=96), slices_of(2, size=96)
    assert features_of(encoder, hu).shape[channels] == encoder.network.num_features == 64
    maps = activation_maps(encoder, hu)
    assert maps.shape == (2, K, 3, 3)
    assert (maps.std(axis=(2, 3)) > 0).all()


def test_a_transformer_of_tokens_has_none():
    """A ViT's last features lie in no grid."""
    assert activation_maps(headed("test_vit", size=160), slices_of(1, size=160)) is None


def test_an_encoder_that_was_never_trained_for_these_labels_has_none(tiny_encoder, headed_encoders):
    """Without a head there is nothing to explain; the same network with one has a map."""
    hu = slices_of(1, size=32)
    assert activation_maps(tiny_encoder, hu) is None
    assert activation_maps(headed_encoders[0], hu).shape == (1, K, 1, 1)


# A network whose answer is known

PATCH, PLACES = 8, 4
SIDE = PATCH * PLACES


class Brightness(nn.Module):
    """A network that sees how bright each patch is, and takes the mean."""

    num_features = 1

    def forward_features(self, shown):
        """Return the mean of each patch, (M, 1, 4, 4)."""
        return nn.functional.avg_pool2d(shown, PATCH)

    def forward_head(self, seen):
        """Return the mean of the places, (M, 1)."""
        return seen.mean(dim=(2, 3))

    def forward(self, shown):
        """Return the embedding."""
        return self.forward_head(self.forward_features(shown))


SLOPES = (1.0, 2.0, -1.0, 0.0, 0.5, 3.0)


def known() -> SliceEncoder:
    """An encoder that takes bright patches for a bleeding of most labels, against one, and for nothing to another."""
    spec = EncoderSpec(
        arch="brightness",
        weights="none",
        sha256="",
        size=SIDE,
        field_mm=SIDE,
        windows_hu=((40.0, 80.0),),
        neighbours=(0,),
        mean=(0.0,),
        std=(1.0,),
        dim=1,
        head=True,
    )
    head = new_head(1).requires_grad_(False)
    head.weight.data, head.bias.data = torch.tensor(SLOPES)[:, None], torch.arange(float(K))
    return SliceEncoder(Brightness(), spec, head).eval()


@settings(deadline=None, max_examples=30)
@given(
    row=st.integers(0, PLACES - 1),
    column=st.integers(0, PLACES - 1),
    blood_hu=st.floats(50, 75),
    beside=st.integers(0, 2),
)
def test_the_map_is_highest_where_a_patch_alone_raises_the_logit(row, column, blood_hu, beside):
    """Blood in one place of one slice: the map is what that place adds, there and nowhere else, slice by slice."""
    hu = torch.zeros(3, 1, SIDE, SIDE)
    hu[beside, 0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = blood_hu
    expected = np.zeros((3, K, PLACES, PLACES))
    expected[beside, :, row, column] = np.array(SLOPES) * blood_hu / 80 / PLACES**2
    maps = activation_maps(known(), hu)
    assert maps == pytest.approx(expected, abs=1e-6)
    assert np.unravel_index(maps[beside, K - 1].argmax(), (PLACES, PLACES)) == (row, column)
    assert np.unravel_index(maps[beside, 2].argmin(), (PLACES, PLACES)) == (row, column)


def test_of_a_real_network_the_map_changes_most_where_the_slice_does():
    """One corner made blood, then another: the change of the map has its centre in that corner."""
    encoder, plain = headed("test_resnet", size=160), slices_of(1, size=160)
    before = activation_maps(encoder, plain)[0]
    for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):
        hu = plain.clone()
        hu[..., 16 + 80 * rows : 64 + 80 * rows, 16 + 80 * columns : 64 + 80 * columns] = 70
        change = np.abs(activation_maps(encoder, hu)[0] - before).sum(axis=0)
        assert change.shape == (5, 5)
        halves = slice(None, 2), slice(3, None)  # the middle row and column belong to neither
        quarters = {(r, c): change[halves[r], halves[c]].sum() for r in (0, 1) for c in (0, 1)}
        assert max(quarters, key=quarters.get) == (rows, columns)


# What it leaves behind


def test_slices_do_not_touch_each_other():
    """The maps of several slices at once are those of each alone."""
    encoder, hu = headed("test_resnet"), slices_of(4)
    together = activation_maps(encoder, hu)
    alone = np.concatenate([activation_maps(encoder, hu[i : i + 1]) for i in range(4)])
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(activation_maps(encoder, hu.flip(0))[::-1], abs=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_encoder_is_left_as_it_was(frozen):
    """No gradient is kept, though its weights ask for some; weights, mode and what it says are bit for bit the same."""
    encoder, hu = headed("test_efficientnet").requires_grad_(not frozen), slices_of(2)
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    before, given_hu = logits_of(encoder, hu), hu.clone()
    maps = activation_maps(encoder, hu)
    assert all(p.grad is None and p.requires_grad is not frozen for p in encoder.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())
    assert not any(module.training for module in encoder.modules())
    assert (logits_of(encoder, hu) == before).all()
    assert torch.equal(hu, given_hu)
    assert not hu.requires_grad
    assert (activation_maps(encoder, hu) == maps).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_whether_the_caller_keeps_gradients_changes_nothing(mode):
    """The map is the same, and the caller's mode comes back."""
    encoder, hu = headed("test_resnet"), slices_of(2)
    expected = activation_maps(encoder, hu)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert (activation_maps(encoder, hu) == expected).all()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_slices_made_in_inference_mode_will_do():
    """A tensor that can take no gradient is as good as any."""
    encoder, hu = headed("test_resnet"), slices_of(2)
    with torch.inference_mode():
        made = hu * 1
    assert made.is_inference()
    assert (activation_maps(encoder, made) == activation_maps(encoder, hu)).all()


def test_a_caller_in_inference_mode_gets_the_same_map():
    """Inference mode around the call takes nothing from the map, and comes back."""
    encoder, hu = headed("test_resnet"), slices_of(2)
    expected = activation_maps(encoder, hu)
    with torch.inference_mode():
        maps = activation_maps(encoder, hu)
        assert torch.is_inference_mode_enabled()
    assert (maps == expected).all()


def test_the_map_of_networks_side_by_side_is_the_mean_of_theirs():
    """Their logit is the mean, and so is what each place adds to it."""
    one, other, hu = headed("test_efficientnet"), headed("resnet18"), slices_of(3)
    both = activation_maps(ensemble_of([one, other]), hu)
    expected = (activation_maps(one, hu) + activation_maps(other, hu)) / 2
    assert both == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected).max() > 0.01


class Branches(Brightness):
    """A network whose last features are several maps, as CrossViT, CoaT and EfficientViM give them."""

    def forward_features(self, shown):
        """Return a list of two maps."""
        return [super().forward_features(shown)] * 2

    def forward_head(self, seen):
        """Return the mean of the first."""
        return super().forward_head(seen[0])


def test_a_network_of_several_maps_has_none():
    """Where the last features are more than one tensor there is no map, and nothing is raised."""
    plain = known()
    assert (
        activation_maps(SliceEncoder(Branches(), plain.spec, plain.head).eval(), torch.zeros(1, 1, SIDE, SIDE)) is None
    )

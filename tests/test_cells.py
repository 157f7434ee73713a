"""What reads along a study: alone or batched it says what torch's own layer, or a plain loop, says of the study."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from ich_seq.cells import HEADS, KERNEL, build_cell, valid_steps
from ich_seq.config import Rnn

INPUTS, HIDDEN = 10, 4
JUNK = [0.0, 1e9, -1e9]
"""A cell's inputs are finite: the model keeps NaN and infinities of the padding from it."""

KINDS = [(cell, layers) for cell in ("gru", "lstm", "transformer", "conv") for layers in (1, 2)]
IDS = [f"{cell}-{layers}" for cell, layers in KINDS]
lengths_of_studies = st.lists(st.integers(1, 12), min_size=1, max_size=5)
seeds = st.integers(0, 10**6)
quick = settings(deadline=None, max_examples=15)


def cell_of(kind: str, layers: int, *, dropout: float = 0.3) -> nn.Module:
    """A cell of random weights, norms and biases among them: those of a fresh one would hide a leak."""
    generator = torch.Generator().manual_seed(layers)
    cell = build_cell(INPUTS, Rnn(cell=kind, layers=layers, hidden=HIDDEN, dropout=dropout)).double().eval()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return cell


@pytest.fixture(scope="module", params=KINDS, ids=IDS)
def cell(request) -> nn.Module:
    return cell_of(*request.param)


def studies_of(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, INPUTS, generator=generator, dtype=torch.float64) for n in lengths]


def padded(rows: list[Tensor], filling: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    whole = torch.full((len(rows), int(lengths.max()) + extra, INPUTS), filling, dtype=torch.float64)
    for into, row in zip(whole, rows, strict=True):
        into[: len(row)] = row
    return whole, lengths


def like(cell: nn.Module, kind: str, layers: int, row: Tensor) -> Tensor:
    """Say it of one study alone, unpadded and unmasked, by another network of the same weights."""
    if kind in ("gru", "lstm"):
        plain = (nn.LSTM if kind == "lstm" else nn.GRU)(INPUTS, HIDDEN, layers, batch_first=True, bidirectional=True)
        plain.double().load_state_dict(cell.rnn.state_dict())
        return plain(row[None])[0][0]
    entered = row @ cell.enter.weight.T + cell.enter.bias
    if kind == "conv":
        return convolved(cell, entered)
    layer = nn.TransformerEncoderLayer(
        2 * HIDDEN, HEADS, 4 * HIDDEN, activation="gelu", batch_first=True, norm_first=True
    )
    plain = nn.TransformerEncoder(layer, layers, nn.LayerNorm(2 * HIDDEN), enable_nested_tensor=False).double().eval()
    plain.load_state_dict(cell.layers.state_dict())
    return plain(entered[None])[0]


def convolved(cell: nn.Module, said: Tensor) -> Tensor:
    """Add up, slice by slice and neighbour by neighbour, what a study's slices give each other."""
    for depth, (norm, convolution) in enumerate(zip(cell.norms, cell.convolutions, strict=True)):
        seen = layer_norm(said, (2 * HIDDEN,), norm.weight, norm.bias)
        heard = []
        for t in range(len(said)):
            total = convolution.bias
            for k in range(KERNEL):
                other = t + (k - KERNEL // 2) * 2**depth
                if 0 <= other < len(said):
                    total = total + convolution.weight[:, :, k] @ seen[other]
            heard.append(gelu(total))
        said = said + torch.stack(heard)
    return said


@pytest.mark.parametrize(("kind", "layers"), KINDS, ids=IDS)
@given(lengths=lengths_of_studies, seed=seeds, filling=st.sampled_from(JUNK), extra=st.integers(0, 3))
@quick
def test_a_batch_says_what_the_plain_network_says_of_each_study_alone(kind, layers, lengths, seed, filling, extra):
    """Packed, masked or zeroed, whatever lies beyond: each study comes to what it would without batch and padding."""
    cell, studies = cell_of(kind, layers), studies_of(lengths, seed)
    inputs, counts = padded(studies, filling, extra)
    said = cell(inputs, counts)
    with torch.no_grad():
        quickly = cell(inputs, counts)  # torch has a path of its own for this
        expected = [like(cell, kind, layers, study) for study in studies]
    assert said.shape == quickly.shape == (*inputs.shape[:2], cell.width)
    assert cell.width == 2 * HIDDEN
    for b, (n, truth) in enumerate(zip(lengths, expected, strict=True)):
        torch.testing.assert_close(said[b, :n], truth, atol=1e-9, rtol=0)
        torch.testing.assert_close(quickly[b, :n], truth, atol=1e-9, rtol=0)


@given(lengths=lengths_of_studies, seed=seeds, data=st.data())
@quick
def test_order_and_company_change_nothing(cell, lengths, seed, data):
    """Studies of a batch in any order, and each alone, come to the same."""
    studies = studies_of(lengths, seed)
    order = data.draw(st.permutations(range(len(studies))))
    with torch.no_grad():
        alone = [cell(*padded([study]))[0] for study in studies]
        mixed = cell(*padded([studies[i] for i in order]))
    for row, i in zip(mixed, order, strict=True):
        torch.testing.assert_close(row[: lengths[i]], alone[i], atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layers"), KINDS, ids=IDS)
def test_a_slice_hears_all_others_or_those_within_reach(kind, layers):
    """By the derivatives: recurrent and attending cells hear every slice, a convolution 2, then 6 to either side."""
    count = 12
    reach = 2 * (2**layers - 1) if kind == "conv" else count
    cell, (study,) = cell_of(kind, layers), studies_of([count], 6)
    influence = torch.autograd.functional.jacobian(lambda x: cell(x[None], torch.tensor([count]))[0], study)
    heard = influence.abs().sum(dim=(1, 3))  # (slice that speaks, slice that changed)
    for i, j in itertools.product(range(count), repeat=2):
        assert (heard[i, j] > 0) == (abs(i - j) <= reach)


@pytest.mark.parametrize("filling", JUNK)
def test_no_gradient_reaches_the_padding_or_another_study(cell, filling):
    """Derivatives by padding and by the other studies of a batch are exactly 0; the parameters' know no padding."""
    studies = studies_of([4, 1, 9], 4)

    def gradients(filling: float, extra: int) -> tuple[Tensor, list[Tensor]]:
        inputs, lengths = padded(studies, filling, extra)
        inputs.requires_grad_(True)
        cell.zero_grad()
        said = cell(inputs, lengths)
        sum((i + 1) * row[:n].square().sum() for i, (row, n) in enumerate(zip(said, (4, 1, 9), strict=True))).backward()
        return inputs.grad, [p.grad.clone() for p in cell.parameters()]

    inputs, lengths = padded(studies, filling, 2)
    inputs.requires_grad_(True)
    (of_second,) = torch.autograd.grad(cell(inputs, lengths)[1, 0].sum(), inputs)
    assert (of_second[[0, 2]] == 0).all()
    of_inputs, of_parameters = gradients(filling, 2)
    real = valid_steps(lengths, inputs.shape[1])
    assert (of_inputs[~real] == 0).all()
    assert (of_inputs[real].abs().sum(dim=-1) > 0).all()
    for got, clean in zip(of_parameters, gradients(0.0, 0)[1], strict=True):
        torch.testing.assert_close(got, clean, atol=1e-9, rtol=1e-9)
        assert (got != 0).any()


def test_layers_have_weights_of_their_own(cell):
    """No two parameters share memory."""
    parameters = list(cell.parameters())
    assert len({p.data_ptr() for p in parameters}) == len(parameters)


def test_a_transformer_knows_of_no_order_but_its_inputs():
    """Slices in another order come out in that order and else unchanged; a convolution and a GRU see the difference."""
    (study,) = studies_of([7], 8)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    for kind, blind in (("transformer", True), ("conv", False), ("gru", False)):
        cell = cell_of(kind, 2)
        with torch.no_grad():
            apart = cell(study[order][None], torch.tensor([7]))[0] - cell(study[None], torch.tensor([7]))[0][order]
        assert (apart.abs().max() < 1e-9) == blind


@pytest.mark.parametrize(("kind", "layers"), [k for k in KINDS if k not in (("gru", 1), ("lstm", 1))], ids=str)
def test_dropout_is_on_in_training_alone(kind, layers):
    """In training the same study says something else twice, in eval and without dropout it does not."""
    (study,) = studies_of([6], 2)

    def repeats(cell: nn.Module) -> bool:
        return torch.equal(*(cell(*padded([study])) for _ in range(2)))

    cell = cell_of(kind, layers)
    assert repeats(cell)
    assert not repeats(cell.train())
    assert repeats(cell_of(kind, layers, dropout=0).train())


@given(lengths=lengths_of_studies, extra=st.integers(0, 3))
@quick
def test_the_mask_is_true_for_the_first_slices(lengths, extra):
    """The one mask ever made, in plain Python; it lies on the device asked for, or on that of the lengths."""
    longest = max(lengths) + extra
    expected = [[i < n for i in range(longest)] for n in lengths]
    assert valid_steps(torch.tensor(lengths), longest).tolist() == expected
    assert valid_steps(torch.tensor(lengths), longest, torch.device("meta")).device.type == "meta"

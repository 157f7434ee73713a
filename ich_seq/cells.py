"""What reads along a study, each slice in the light of the others: recurrent, attending or convolving.

A cell takes (B, T, W) and `lengths` (B,) and gives (B, T, `width`). What it says of a study is the same alone,
in any batch and whatever the padding holds; rows past a study's length mean nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ich_seq.config import Rnn

HEADS = 4
KERNEL = 5


def valid_steps(lengths: Tensor, longest: int, device: torch.device | None = None) -> Tensor:
    """Return (B, T) bool, True where a real slice is: the only mask ever made, and made of `lengths`."""
    steps = torch.arange(longest, device=device or lengths.device)
    return steps < lengths.to(steps.device)[:, None]


def read_packed(rnn: nn.GRU | nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Return the states of a recurrent network, (B, T, W), that never runs over padding.

    In a graph that is exported is one study and no padding, so that there is nothing to pack.
    """
    if torch.compiler.is_exporting():
        states: Tensor = rnn(inputs)[0]
        return states
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]


def build_cell(inputs: int, config: Rnn) -> Recurrent | Attending | Convolving:
    """Return the cell that the settings name, for inputs of this width."""
    if config.cell == "transformer":
        return Attending(inputs, config)
    return Convolving(inputs, config) if config.cell == "conv" else Recurrent(inputs, config)


class Recurrent(nn.Module):
    """A GRU or LSTM both ways, packed, so that it never runs over padding."""

    def __init__(self, inputs: int, config: Rnn) -> None:
        super().__init__()
        self.width = 2 * config.hidden
        kind = nn.LSTM if config.cell == "lstm" else nn.GRU
        dropout = config.dropout if config.layers > 1 else 0.0
        self.rnn = kind(inputs, config.hidden, config.layers, batch_first=True, bidirectional=True, dropout=dropout)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the hidden states of both directions, (B, T, 2 x hidden)."""
        return read_packed(self.rnn, inputs, lengths)


class Attending(nn.Module):
    """A transformer encoder, norm first; it knows of order only what the positions among its inputs say."""

    def __init__(self, inputs: int, config: Rnn) -> None:
        super().__init__()
        self.width = width = 2 * config.hidden
        self.enter = nn.Linear(inputs, width)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        for parameter in self.layers.parameters():  # torch copies one layer, weights and all
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return each slice after it has attended to the others of its study, (B, T, 2 x hidden)."""
        padding = ~valid_steps(lengths, inputs.shape[1], inputs.device)
        attended: Tensor = self.layers(self.enter(inputs), src_key_padding_mask=padding)
        return attended


class Convolving(nn.Module):
    """Residual convolutions along the study, each reaching twice as far as the one before."""

    def __init__(self, inputs: int, config: Rnn) -> None:
        super().__init__()
        self.width = width = 2 * config.hidden
        self.enter = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, KERNEL, padding="same", dilation=2**i) for i in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return each slice with what lies within reach added, (B, T, 2 x hidden); beyond the study lie zeros."""
        real = valid_steps(lengths, inputs.shape[1], inputs.device)[..., None]
        said: Tensor = self.enter(inputs)
        for norm, convolve in zip(self.norms, self.convolutions, strict=True):
            seen = torch.where(real, norm(said), 0).transpose(1, 2)
            said = said + self.dropout(gelu(convolve(seen).transpose(1, 2)))
        return said

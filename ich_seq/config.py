"""Settings: typed, frozen, from TOML and `--set`; a key that does not exist is an error with a suggestion."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ich_seq import UsageError
from ich_seq.files import read_whole

AIR_HU = -1024
"""Lowest HU kept. Air is -1000; scanners pad the corners with -1500 to -3024, which would otherwise
reach the resampling and darken the scalp."""

Level = Annotated[float, Field(ge=-1e5, le=1e5)]
Width = Annotated[float, Field(ge=1, le=1e5)]
Offset = Annotated[int, Field(ge=-64, le=64)]

MAX_SETTINGS_BYTES, MAX_LINE = 1 << 16, 4096
"""tomllib's time and memory grow with the square of a key's length."""


class Section(BaseModel):
    """A table of the settings file: no unknown keys, no change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Slices(Section):
    """How a slice becomes the network's input."""

    size: int = Field(default=256, ge=32, le=1024)
    field_mm: float = Field(default=250.0, ge=100, le=500)
    windows_hu: tuple[tuple[Level, Width], ...] = Field(
        default=((40, 80), (80, 200), (600, 2800)), min_length=1, max_length=16
    )
    neighbours: tuple[Offset, ...] = Field(default=(0,), min_length=1, max_length=16)


class Encoder(Section):
    """Which network embeds a slice."""

    arch: str = "tf_efficientnet_lite0"
    weights: str = "imagenet"
    seed: int = Field(default=0, ge=0, lt=2**63)


class Augment(Section):
    """How a slice is varied each time it is shown in training."""

    flip: float = Field(default=0.5, ge=0, le=1)
    shift: float = Field(default=0.08, ge=0, lt=0.5)
    scale: float = Field(default=0.12, ge=0, lt=0.7)
    rotate_deg: float = Field(default=20.0, ge=0, le=180)
    erase: float = Field(default=0.25, ge=0, le=1)
    window: float = Field(default=0.1, ge=0, lt=0.7)
    turn: float = Field(default=0.5, ge=0, le=1)
    noise_hu: float = Field(default=0.0, ge=0, le=1000)
    blur_mm: float = Field(default=0.0, ge=0, le=20)


class Cnn(Section):
    """How the encoder is trained."""

    folds: int = Field(default=5, ge=2, le=1000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(default=8, ge=1, le=100_000)
    batch_slices: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    sampling: Literal["all", "centre", "balanced"] = "all"
    study_slices: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    head_epochs: float = Field(default=0.5, ge=0)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    ema: float = Field(default=0.99, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    patience: int = Field(default=0, ge=0)
    checkpoint_minutes: float = Field(default=10.0, ge=0)


class Extract(Section):
    """How the encoder is run."""

    batch_size: int = Field(default=8, ge=1, le=4096)
    views: int = Field(default=1, ge=1, le=8)
    engine: Literal["torch", "openvino"] = "torch"
    precision: Literal["fp32", "bf16"] = "fp32"


class Rnn(Section):
    """The sequence model."""

    projection: int = Field(default=32, ge=1, le=4096)
    hidden: int = Field(default=96, ge=1, le=4096)
    layers: int = Field(default=1, ge=1, le=16)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    cell: Literal["gru", "lstm", "transformer", "conv"] = "gru"
    position: bool = True
    smoothing: int = Field(default=3, ge=0, le=64)
    deltas: bool = False
    study_head: Literal["attention", "max"] = "attention"
    both_ways: bool = False
    slice_dropout: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=100)

    @model_validator(mode="after")
    def _shared_among_heads(self) -> Rnn:
        if self.cell == "transformer" and self.hidden % 2:
            raise ValueError("a transformer has 4 heads that share 2 x hidden; choose an even rnn.hidden")
        return self


class Train(Section):
    """How the sequence model is trained."""

    allow_in_sample: bool = False
    folds: int = Field(default=5, ge=3, le=1000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(default=40, ge=1, le=100_000)
    batch_studies: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1.0, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    patience: int = Field(default=10, ge=1)
    thin: float = Field(default=0.2, ge=0, le=1)
    reverse: float = Field(default=0.5, ge=0, le=1)
    study_loss: float = Field(default=0.25, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    average_epochs: int = Field(default=1, ge=1)
    seeds: int = Field(default=1, ge=1, le=1000)
    calibration: Literal["platt", "temperature", "none"] = "platt"
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_minutes: float = Field(default=1.0, ge=0)


class Config(Section):
    """All settings, at their defaults unless a file or `--set` says otherwise."""

    slices: Slices = Slices()
    encoder: Encoder = Encoder()
    augment: Augment = Augment()
    cnn: Cnn = Cnn()
    extract: Extract = Extract()
    rnn: Rnn = Rnn()
    train: Train = Train()


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read settings from a TOML file (or the defaults), then apply overrides such as "train.epochs=30".

    An override's value is written as in TOML; a bare word is taken as text. Raises UsageError for an
    unreadable file, an unknown key (with the nearest known one) or a value of the wrong kind.
    """
    values = {} if path is None else _read_toml(path)
    for override in overrides:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        source = " and ".join(([str(path)] if path else []) + (["--set"] if overrides else [])) or "the settings"
        raise UsageError("\n".join(f"{source}: {_sentence(e)}" for e in error.errors())) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = read_whole(path, MAX_SETTINGS_BYTES).decode()
        if max(map(len, text.splitlines()), default=0) > MAX_LINE:
            raise UsageError(f"{path} has a line of more than {MAX_LINE} characters; no setting needs one.")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"Cannot read the settings {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from None


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *tables, key = name.strip().split(".")
    if not equals or not tables:
        raise UsageError(f"--set {override}: write it as section.key=value, e.g. --set train.epochs=30.")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {override}: {table} is a value, not a section.")
    values[key] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sentence(error: Any) -> str:
    """Turn one of pydantic's errors into a sentence with the remedy."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        same = [key for key in _known_keys() if key.rpartition(".")[2] == where]
        near = same or difflib.get_close_matches(where, _known_keys(), n=1, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(_known_keys())}."
        return f"unknown key {where}{hint}"
    return f"{where}: {error['msg']} (given: {error['input']!r})."


def _known_keys() -> list[str]:
    return list(_keys("", Config))


def _keys(prefix: str, section: type[BaseModel]) -> Iterable[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        yield prefix + name
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(f"{prefix}{name}.", inner)

"""Settings from TOML and --set: typed, frozen, and no key passes that does not exist."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ich_seq import UsageError
from ich_seq.config import Config, load_config

RECIPES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def leaves(model: BaseModel, prefix: str = "") -> dict[str, object]:
    """Every setting by its dotted name."""
    found: dict[str, object] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        inner = isinstance(value, BaseModel)
        found |= leaves(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


KEYS = sorted(leaves(Config()))


def as_toml(value: object) -> str:
    return json.dumps(value)  # for numbers, text, true/false and arrays, JSON is TOML


def test_without_file_and_overrides_there_are_the_defaults():
    """No file and an empty file mean the same: the defaults."""
    assert load_config() == Config()


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_can_be_given_in_a_file_or_by_set(tmp_path, key):
    """Each default, written out as TOML in a file or as --set, is accepted and changes nothing."""
    text = as_toml(leaves(Config())[key])
    section, name = key.split(".")
    assert load_config(put(tmp_path / "a.toml", f"[{section}]\n{name} = {text}\n")) == Config()
    assert load_config(None, [f"{key}={text}"]) == Config()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    """Settings that a file does not name keep their defaults, also inside a section it does name."""
    path = put(tmp_path / "a.toml", "[train]\nepochs = 7\n[slices]\nwindows_hu = [[40, 80], [50.5, 350]]\n")
    changed = leaves(load_config(path))
    expected = leaves(Config()) | {"train.epochs": 7, "slices.windows_hu": ((40, 80), (50.5, 350))}
    assert changed == expected


def test_set_wins_over_the_file_and_the_last_set_over_the_first(tmp_path):
    """The command line has the last word, key by key: the file's other keys in the section stay."""
    path = put(tmp_path / "a.toml", "[train]\nepochs = 7\nfolds = 4\n")
    config = load_config(path, ["train.epochs=8", "train.epochs=9", "rnn.hidden=32"])
    assert (config.train.epochs, config.train.folds, config.rnn.hidden) == (9, 4, 32)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=30", 30),
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate = 0.5", 0.5),
        ("rnn.position=false", False),
        ("slices.neighbours=[-1, 0, 1]", (-1, 0, 1)),
        ("slices.windows_hu=[[40, 80]]", ((40, 80),)),
        ("extract.engine=openvino", "openvino"),
        ("train.allow_in_sample=true", True),
        ("encoder.arch=resnet18", "resnet18"),
        ('encoder.arch="resnet18"', "resnet18"),
        ("encoder.arch=tf_efficientnetv2_s.in21k_ft_in1k", "tf_efficientnetv2_s.in21k_ft_in1k"),
        ("encoder.weights=/data/run 1/lr=3.safetensors", "/data/run 1/lr=3.safetensors"),
        ("encoder.weights=none", "none"),
    ],
)
def test_set_takes_toml_and_bare_words(override, value):
    """A value after --set is TOML, and what is no TOML is text, so shells need no second pair of quotes."""
    key = override.split("=")[0].strip()
    read = leaves(load_config(None, [override]))[key]
    assert read == value
    assert type(read) is type(value)


@given(key=st.sampled_from(KEYS), data=st.data())
@settings(deadline=None, max_examples=80)
def test_a_mistyped_key_is_refused_with_the_right_one(key, data):
    """A letter left out, doubled or swapped in a setting's name is refused, and the message offers the true name."""
    section, name = key.split(".")
    at = data.draw(st.integers(0, len(name) - 2))
    wrong = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], swapped(name, at), name + "s"])
    )
    if f"{section}.{wrong}" in KEYS:
        return
    with pytest.raises(UsageError) as refusal:
        load_config(None, [f"{section}.{wrong}=1"])
    assert f"unknown key {section}.{wrong}" in str(refusal.value)
    near = [key, *(k for k in KEYS if k in (f"{key}s", key.removesuffix("s")))]  # train.seed and train.seeds
    assert any(f"did you mean {k}?" in str(refusal.value) for k in near)


def swapped(name: str, at: int) -> str:
    return name[:at] + name[at + 1] + name[at] + name[at + 2 :]


@pytest.mark.parametrize(
    ("text", "unknown", "offered"),
    [
        ("epochs = 3\n", "unknown key epochs", ".epochs"),
        ("projection = 3\n", "unknown key projection", "rnn.projection"),
        ("[train]\nunseen_by_encoder = true\n", "unknown key train.unseen_by_encoder", "did you mean"),
        ("[encoder]\nbatch_size = 3\n", "unknown key encoder.batch_size", "did you mean"),
        ("[trian]\nepochs = 3\n", "unknown key trian", "train"),
        ("[train.epoch]\nx = 3\n", "unknown key train.epoch", "train.epochs"),
        ("[qqq]\nzzz = 3\n", "unknown key qqq", "known are"),
    ],
)
def test_an_unknown_key_in_a_file_is_named_with_the_file(tmp_path, text, unknown, offered):
    """A key in the wrong place or of no meaning is never ignored; the message names file, key and remedy."""
    path = put(tmp_path / "mine.toml", text)
    with pytest.raises(UsageError) as refusal:
        load_config(path)
    for part in (str(path), unknown, offered):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", "many"),
        ("train.epochs", "2.5"),
        ("train.epochs", "0"),
        ("train.folds", "2"),
        ("train.learning_rate", "[1]"),
        ("train.warmup", "1.0"),
        ("rnn.dropout", "1.0"),
        ("rnn.dropout", "-0.1"),
        ("rnn.position", "perhaps"),
        ("encoder.arch", "3"),
        ("slices.size", "16"),
        ("slices.neighbours", "[]"),
        ("slices.neighbours", "[0.5]"),
        ("slices.windows_hu", "[]"),
        ("slices.windows_hu", "[[40, 0]]"),
        ("slices.windows_hu", "[[40, 80, 1]]"),
        ("slices.windows_hu", "40"),
        ("slices.windows_hu", "[[nan, 80]]"),
        ("slices.windows_hu", "[[40, inf]]"),
        ("train.learning_rate", "inf"),
        ("train.weight_decay", "inf"),
        ("train.allow_in_sample", "perhaps"),
        ("extract.engine", "abacus"),
        ("extract.precision", "fp8"),
        ("extract.views", "0"),
        ("extract.views", "9"),
        ("extract.batch_size", "0"),
        ("rnn.cell", "rwkv"),
        ("rnn.study_head", "mean"),
        ("rnn.slice_dropout", "1.0"),
        ("rnn.noise", "-0.1"),
        ("train.ema", "1.0"),
        ("train.average_epochs", "0"),
        ("train.seeds", "0"),
        ("train.calibration", "isotonic"),
        ("train.precision", "fp16"),
        ("train.checkpoint_minutes", "-1"),
        ("cnn.folds", "1"),
        ("cnn.sampling", "some"),
        ("cnn.precision", "fp8"),
        ("cnn.layer_decay", "0"),
        ("cnn.ema", "1.0"),
        ("cnn.drop_path", "1.0"),
        ("augment.flip", "1.1"),
        ("augment.shift", "0.5"),
        ("augment.scale", "-0.1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_and_its_key_named(key, value):
    """A value of the wrong kind or out of range is refused before any work starts, with its key in the message."""
    with pytest.raises(UsageError, match=key.replace(".", r"\.")):
        load_config(None, [f"{key}={value}"])


@pytest.mark.parametrize("cell", ["gru", "lstm", "transformer", "conv"])
def test_only_a_transformer_needs_an_even_width(cell):
    """Its four heads share 2 x hidden: an odd one is refused with the remedy, and other cells take any."""
    assert load_config(None, [f"rnn.cell={cell}", "rnn.hidden=6"]).rnn.cell == cell
    if cell != "transformer":
        assert load_config(None, [f"rnn.cell={cell}", "rnn.hidden=7"]).rnn.hidden == 7
        return
    with pytest.raises(UsageError, match=r"rnn.*choose an even rnn\.hidden"):
        load_config(None, [f"rnn.cell={cell}", "rnn.hidden=7"])


def test_all_mistakes_are_told_at_once(tmp_path):
    """Two mistakes make two lines, so that nobody mends a file one run at a time."""
    path = put(tmp_path / "a.toml", "[train]\nepoch = 3\nfolds = 'five'\n")
    with pytest.raises(UsageError) as refusal:
        load_config(path)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2
    assert {"train.epoch", "train.folds"} == {word.strip(":;") for line in lines for word in line.split()} & {
        "train.epoch",
        "train.folds",
    }


@pytest.mark.parametrize("override", ["train.epochs", "epochs=3", "=3", "train=3", ""])
def test_a_set_of_another_form_is_refused_with_an_example(override):
    """--set without section, key or value is refused, and the message shows how it is written."""
    with pytest.raises(UsageError, match=r"--set train\.epochs=30"):
        load_config(None, [override])


def test_a_set_below_a_value_is_refused(tmp_path):
    """--set into something that is no section says so, and names it."""
    with pytest.raises(UsageError, match=r"train is a value"):
        load_config(put(tmp_path / "a.toml", "train = 3\n"), ["train.epochs=3"])


@pytest.mark.parametrize(
    "content", [None, b"[train\n", b"[train]\nepochs = \n", b"\xff\xfe", b"[train]\nepochs=1\nepochs=2\n"]
)
def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path, content):
    """A settings file that cannot be read is a UsageError with its path, not a traceback."""
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        load_config(path)


@pytest.mark.parametrize("key", KEYS)
def test_settings_do_not_change_once_made(key):
    """Nothing can alter a setting after the run has started and its hash was taken."""
    config = Config()
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(config, section), name, value)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, section, getattr(config, section))
    hash(config)  # lists inside would not be frozen, and have no hash


def test_settings_survive_json():
    """Settings written to run.json read back as the same settings."""
    config = load_config(None, ["slices.neighbours=[-1,0,1]", "train.learning_rate=0.1", "encoder.arch=resnet18"])
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_every_recipe_in_the_repository_loads():
    """The files in configs/ hold no key that a rename has left behind."""
    for path in RECIPES:
        assert isinstance(load_config(path), Config)


def test_the_baseline_file_is_the_defaults() -> None:
    """configs/baseline.toml documents every key at the value it has without the file, and leaves none out."""
    path = Path(__file__).resolve().parents[1] / "configs" / "baseline.toml"
    assert load_config(path) == load_config()
    written = tomllib.loads(path.read_text())
    assert {name: set(keys) for name, keys in written.items()} == {
        name: set(keys) for name, keys in load_config().model_dump().items()
    }


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_recipe_loads_and_names_a_network_that_timm_has(path: Path) -> None:
    """A recipe with a misspelt key or network would fail on the user's machine, hours from here."""
    import timm

    chosen = load_config(path)
    assert timm.is_model(chosen.encoder.arch)
    if chosen.encoder.weights == "hub":
        assert chosen.encoder.arch in timm.list_models(pretrained=True)

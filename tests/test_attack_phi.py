"""The search for canaries: the package tells none, and one that carries patients off is found out."""

from __future__ import annotations

import base64

import pytest
from attacks import phi
from attacks.canaries import Flock
from attacks.identifying_data import IDENTIFYING

pytest_plugins = ["grounds"]


@pytest.fixture
def attack(monkeypatch, tmp_path, scene, zygote):
    """Run the attack at a scale, on a weakened package if asked for; gives its outcome."""

    def attack(scale, weakness=""):
        monkeypatch.setattr(zygote, "weakness", weakness)
        (tmp_path / "attack").mkdir()
        return phi.run(tmp_path / "attack", scene=scene, zygote=zygote, scale=scale)

    return attack


@pytest.mark.slow
def test_a_slice_of_the_attack_finds_nothing(attack):
    """Predict on files that name people, whole and broken; with --phi they are named, so canaries can be found."""
    outcome = attack(0.1)
    assert outcome.failures == ()
    assert outcome.figures["canaries"] > 150
    assert outcome.figures["files searched"] > 10


@pytest.mark.slow
def test_no_command_tells_a_canary(attack):
    """All commands, killed and broken ones too."""
    assert attack(1.0).failures == ()


@pytest.mark.slow
def test_a_patient_in_a_column_is_found(attack):
    """The control: the scanner's column tells Patient IDs."""
    assert any(
        "studies.csv tells PatientID" in failure for failure in attack(0.01, "call_scanners_by_patients").failures
    )


@pytest.mark.slow
def test_a_patient_in_a_temporary_file_is_found(attack):
    """The control: in UTF-16, and left behind."""
    failures = attack(0.01, "note_patients").failures
    assert any("a temporary file held PatientID" in failure and "UTF-16" in failure for failure in failures)
    assert any("a temporary file was left" in failure for failure in failures)


def test_there_are_many_kinds_of_canaries():
    """More than the forty elements that were asked for, each once."""
    assert len(IDENTIFYING) == len(set(IDENTIFYING)) > 60


CASES = {"as it is": str, "lower": str.lower, "upper": str.upper}
CODES = {
    "plain": str.encode,
    "reversed": lambda text: text[::-1].encode(),
    "UTF-16": lambda text: text.encode("utf-16-le"),
    "UTF-16, other order": lambda text: text.encode("utf-16-be"),
    "hex": lambda text: text.encode().hex().encode(),
    "hex in capitals": lambda text: text.encode().hex().upper().encode(),
    "percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()).encode(),
    **{f"base64 behind {n}": lambda text, n=n: base64.b64encode(b"xyz"[:n] + text.encode() + b"!") for n in range(3)},
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_canary_is_found_in_every_encoding(case, code):
    """Alone of all, and by its name."""
    flock = Flock(3)
    words = [flock.word(name) for name in ("a", "b", "c")]
    found = [*flock.found_in(b"\x00\xff " + code(case(words[1])) + b" \x00")]
    assert [name.partition(" ")[0] for name in found] == ["b"]


def test_words_of_another_flock_are_none_of_ours():
    """Nothing is found where nothing is."""
    flock = Flock(3)
    flock.word("a")
    assert not [*flock.found_in(Flock(4).bytes("a") + bytes(range(256)))]

"""Records rewritten to vouch for a file that was put into a folder: who can write a file can write its SHA-256 too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from ich_seq.checkpoint import OWN_HASH
from ich_seq.files import sha256_bytes, sha256_file


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")  # as the package writes it


def _hash(root: Path, name: str, otherwise: str) -> str:
    """Return the hash of a copy's file; one that cannot be read, such as a folder, keeps the old one."""
    path = root / name
    return sha256_file(path) if path.is_file() else otherwise


def vouch_bundle(root: Path) -> None:
    """Make the card say the hashes of the files that it names."""
    card = _json(root / "bundle.json")
    for entry in (*card["encoders"], *card["rnn"]["files"], card["familiar"]):
        entry["sha256"] = _hash(root, entry["file"], entry["sha256"])
    _write(root / "bundle.json", card)


def vouch_store(root: Path) -> None:
    """Make a store's index, where it is one, and then its manifest say the hashes of its files."""
    manifest = _json(root / "manifest.json")
    try:
        index = pd.read_parquet(root / "studies.parquet")
        hashes = [_hash(root, *row) for row in zip(index["file"], index["sha256"], strict=True)]
        if hashes != index["sha256"].tolist():  # an index that was changed itself stays as it is
            index.assign(sha256=hashes).to_parquet(root / "studies.parquet", index=False)
    except Exception:  # no index any more, of which Arrow tells in many ways
        pass
    manifest["files"] = {name: _hash(root, name, old) for name, old in manifest["files"].items()}
    for number, spec in manifest["encoders"].items():
        spec["sha256"] = _hash(root, f"network-{number}.safetensors", spec["sha256"])
    _write(root / "manifest.json", manifest)


def vouch_run(root: Path) -> None:
    """Make the records of folds, where they are such, and that of the run say the hashes of their files."""
    run = _json(root / "run.json")
    run["folds_sha256"] = _hash(root, "folds.csv", run["folds_sha256"])
    for fold, spec in zip(run["trained_folds"], run["encoders"], strict=True):
        folder = root / f"fold-{fold}"
        spec["sha256"] = _hash(folder, "encoder.safetensors", spec["sha256"])
        try:
            record = _json(folder / "fold.json")
            record["spec"]["sha256"] = spec["sha256"]
            record["held_out_sha256"] = _hash(folder, "held_out.csv", record["held_out_sha256"])
            _write(folder / "fold.json", record)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    _write(root / "run.json", run)


def vouch_states(root: Path) -> None:
    """Make the records of states, where they are such, say the hashes of their tensors and of themselves."""
    for path in root.rglob("*.json"):
        try:
            record = _json(path)
            record["sha256"] = _hash(path.parent, record["file"], record["sha256"])
            del record[OWN_HASH]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        _write(path, record | {OWN_HASH: sha256_bytes(json.dumps(record, sort_keys=True).encode())})

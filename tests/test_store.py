"""The feature store: what is read is what was written, whole, or it is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors.numpy import save

from ich_seq import ArtefactError, OutputError, UsageError
from ich_seq.files import PARTIAL, sha256_file, short_hash
from ich_seq.labels import LABELS
from ich_seq.reasons import Reason, Unused, unused_csv
from ich_seq.store import (
    JOURNAL,
    MANIFEST,
    REJECTED,
    SCHEMA,
    STUDIES,
    FeatureStore,
    RowsOnDisk,
    StoreWriter,
    StudyFeatures,
    decode_study,
    encode_study,
    encoder_file,
    open_store,
    part_journal,
)

ROOT = Path(__file__).resolve().parents[1]
FINGERPRINT = "0123456789abcdef"
GEOMETRY = {"spacing_mm": 5.0, "zones": 2, "tilt_deg": 0.1 + 0.2}
KILLS = 10
ENCODER, K = encoder_file(0), len(LABELS)
WEIGHTS = b"weights of the encoder"
HERE = Path("a.safetensors")

# Forks children that grow a store and kills them; started afresh, so that forking finds no threads.
KILLER = f"""
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from ich_seq.store import StoreWriter, StudyFeatures, encoder_file
root, kills, studies = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rows = [(i, k) for i in range(studies) for k in range(2 - i % 2)]  # two networks for every second study
encoders = [encoder_file(k) for k in range(2)]

def study(i, k):
    rng = np.random.default_rng([i, k])
    n = 1 + i % 12
    return StudyFeatures(
        study_uid=f"1.2.{{i}}", patient_key=f"p{{i // 2}}", sop_uids=tuple(f"1.2.{{i}}.{{s}}" for s in range(n)),
        positions_mm=abs(rng.normal(size=n)).cumsum(), features=rng.normal(size=(n, 64)).astype(np.float16),
        logits=rng.normal(size=(n, {K})).astype(np.float32), network=k)

def grow():
    writer = StoreWriter(root, "{FINGERPRINT}")
    for name in encoders:
        (root / name).write_bytes(b"weights")
    for i, k in rows:
        if not writer.has(f"key{{i}} {{k}}"):
            geometry = {{"zones": i % 3, "spacing_mm": i / 7, "age": i}}
            writer.add(f"key{{i}} {{k}}", study(i, k), geometry, whole=True, in_sample=i % 5 == 0)
    writer.close([f"key{{i}} {{k}}" for i, k in rows], b"file\\n", encoders, {{"facts": [1, 2]}})

wait = random.Random(0)
for _ in range(kills):
    child = os.fork()
    if child == 0:
        grow()
        os._exit(0)
    time.sleep(wait.uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(len(list(root.glob("*.safetensors"))), (root / "manifest.json").exists(), flush=True)
grow()
"""


def study_of(
    uid: str, slices: int = 3, seed: int = 0, dim: int = 16, *, network: int = 0, logits: bool = False
) -> StudyFeatures:
    """A study of random numbers; networks make other ones of the same slices."""
    rng = np.random.default_rng([seed, slices, *([network] if network else [])])
    return StudyFeatures(
        study_uid=uid,
        patient_key=f"patient of {uid}",
        sop_uids=tuple(f"{uid}.{i}" for i in range(slices)),
        positions_mm=np.abs(np.random.default_rng([seed, slices]).normal(size=slices)).cumsum(),
        features=rng.normal(size=(slices, dim)).astype(np.float16),
        logits=rng.normal(size=(slices, K)).astype(np.float32) if logits else None,
        network=network,
    )


def assert_equal(a: StudyFeatures, b: StudyFeatures) -> None:
    assert (a.study_uid, a.patient_key, a.sop_uids, a.network) == (b.study_uid, b.patient_key, b.sop_uids, b.network)
    assert (a.logits is None) == (b.logits is None)
    logits = [] if a.logits is None else [(a.logits, b.logits)]
    for x, y in ((a.features, b.features), (a.positions_mm, b.positions_mm), *logits):
        assert x.shape == y.shape
        read, truth = np.asarray(x), np.asarray(y)
        assert read.dtype == truth.dtype
        assert read.tobytes() == truth.tobytes()


def key_of(study: StudyFeatures) -> str:
    return study.study_uid if not study.network else f"{study.study_uid} {study.network}"


def grown(
    root: Path, studies: list[StudyFeatures], fingerprint: str = FINGERPRINT, in_sample: Sequence[str] = ()
) -> StoreWriter:
    """Add studies under their UIDs (and network) as keys, those that are missing, as extraction does."""
    root.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(root, fingerprint)
    for study in studies:
        if not writer.has(key_of(study)):
            writer.add(key_of(study), study, GEOMETRY, whole=True, in_sample=study.study_uid in in_sample)
    return writer


def finish(writer: StoreWriter, keys: list[str], networks: int = 1, facts: object = ()) -> Path:
    """Put encoders beside the studies and close the store."""
    encoders = [encoder_file(k) for k in range(networks)]
    for name in encoders:
        (writer.root / name).write_bytes(WEIGHTS)
    writer.close(keys, unused_csv([]), encoders, dict(facts))
    return writer.root


def closed(
    root: Path, studies: list[StudyFeatures], fingerprint: str = FINGERPRINT, in_sample: Sequence[str] = ()
) -> Path:
    writer, networks = grown(root, studies, fingerprint, in_sample), max(s.network for s in studies) + 1
    return finish(writer, [key_of(s) for s in studies], networks, {"counts": {"files": 9}})


def found(store: FeatureStore, uid: str) -> StudyFeatures:
    """Return the one study of this UID that the store gives."""
    (study,) = [s for s in store if s.study_uid == uid]
    return study


def contents(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir()}


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def file_of(root: Path, uid: str, network: int = 0) -> Path:
    return root / f"{short_hash(f'{uid} {network}')}.safetensors"


# One study, there and back

text = st.text(max_size=20)
features = st_numpy.arrays(np.float16, st.tuples(st.integers(0, 12), st.integers(1, 16)))


@given(rows=features, uid=text, patient=text, network=st.integers(0, 9), with_logits=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_study_comes_back_bit_for_bit(rows, uid, patient, network, with_logits, data):
    """Whatever the numbers (NaN, infinities, -0) and names, encoding and decoding returns them exactly."""
    n = len(rows)
    logits = data.draw(st_numpy.arrays(np.float32, (n, K))) if with_logits else None
    study = StudyFeatures(
        study_uid=uid,
        patient_key=patient,
        sop_uids=tuple(data.draw(st.lists(text, min_size=n, max_size=n))),
        positions_mm=data.draw(st_numpy.arrays(np.float64, n)),
        features=rows,
        logits=logits,
        network=network,
    )
    assert_equal(decode_study(encode_study(study), HERE), study)


def test_equal_studies_give_equal_bytes():
    """The same numbers give the same file, however they lie in memory."""
    study = study_of("1.2", 5, logits=True)
    in_columns = replace(study, features=np.asfortranarray(study.features), logits=np.asfortranarray(study.logits))
    spread = replace(study, positions_mm=np.repeat(study.positions_mm, 2)[::2])
    for other in (study_of("1.2", 5, logits=True), in_columns, spread):
        assert encode_study(other) == encode_study(study)
        assert_equal(decode_study(encode_study(other), HERE), study)
    for change in ({"patient_key": "another"}, {"network": 1}, {"logits": None}, {"logits": study.logits + 1}):
        assert encode_study(replace(study, **change)) != encode_study(study)


def test_a_study_has_the_same_bytes_in_another_process():
    """No hash seed or memory address finds its way into a file."""
    code = (
        "import numpy as np, hashlib; from ich_seq.store import *;"
        "print(hashlib.sha256(encode_study(StudyFeatures(study_uid='1.2', patient_key='p', sop_uids=('b', 'a'),"
        "positions_mm=np.arange(2.0), features=np.ones((2, 3), np.float16), logits=np.ones((2, 6), np.float32),"
        "network=1))).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    first, second = (run.communicate(timeout=60)[0] for run in runs)
    assert len(first.strip()) == 64
    assert first == second


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=40)
def test_a_truncated_study_file_is_refused(cut):
    """A file cut anywhere is an ArtefactError that names it, never half a study."""
    data = encode_study(study_of("1.2", logits=True))
    with pytest.raises(ArtefactError, match=str(HERE)):
        decode_study(data[: int(len(data) * cut)], HERE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a feature file",
        save({"features": np.ones((2, 3), np.float16), "positions_mm": np.ones(2)}),
        save({"features": np.ones((2, 3), np.float16)}, metadata={"ich_seq": '{"study_uid": "1"}'}),
        save(
            {"features": np.ones((1, 3), np.float16), "positions_mm": np.ones(1)},
            metadata={"ich_seq": '{"study_uid": "1", "patient_key": "p", "sop_uids": ["1.1"]}'},
        ),
        save({"weight": np.ones(3)}, metadata={"ich_seq": "no json"}),
        save({"weight": np.ones(3)}, metadata={"ich_seq": "[]"}),
    ],
    ids=["empty", "text", "no metadata", "no positions", "no network", "no json", "no names"],
)
def test_a_file_of_another_kind_is_refused(data):
    """A safetensors file that is no study's, or no safetensors file, is an ArtefactError with the remedy."""
    with pytest.raises(ArtefactError, match="extract the features again"):
        decode_study(data, HERE)


@pytest.mark.parametrize("part", ["features", "positions_mm", "sop_uids", "logits"])
@pytest.mark.parametrize("logits", [False, True], ids=["no head", "head"])
def test_parts_of_different_length_are_refused(part, logits):
    """Rows without a name, names without a row and logits of fewer or more slices are never guessed at."""
    study = study_of("1.2", 4, logits=logits or part == "logits")
    rows = getattr(study, part)
    longer = (*rows, "1.2.9") if part == "sop_uids" else np.concatenate([rows, rows[:1]])
    for other in (rows[:-1], rows[:0], longer):
        with pytest.raises(ArtefactError, match="differ in number"):
            decode_study(encode_study(replace(study, **{part: other})), HERE)


# A store that grows


def test_a_killed_run_is_taken_up_and_ends_in_the_same_bytes(tmp_path):
    """Ten kills at random moments, then one run to the end: every file is byte for byte that of a run in peace."""
    peace, war = tmp_path / "peace", tmp_path / "war"
    for root in (peace, war):
        root.mkdir()
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", KILLER, str(root), str(kills), "100"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for root, kills in ((peace, 0), (war, KILLS))
    ]
    _, told = (run.communicate(timeout=120)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    seen = [line.split() for line in told.splitlines()]
    assert len(seen) == KILLS
    assert len({int(count) for count, done in seen if done == "False"}) > 1, f"no kill hit a growing store: {seen}"
    expected, found = contents(peace), contents(war)
    assert found.keys() - expected.keys() <= {name for name in found if name.endswith(PARTIAL)}
    assert [name for name in expected if found.get(name) != expected[name]] == []
    store = open_store(war)
    assert (len(store), len(store.studies)) == (100, 150)


def test_a_resumed_store_is_that_of_one_run(tmp_path):
    """Stopped after the first study and taken up, or run a second time: index and manifest keep their bytes."""
    studies = [study_of(f"1.2.{i}", i + 1) for i in range(4)]
    once = contents(closed(tmp_path / "once", studies))
    grown(tmp_path / "twice", studies[:1])
    assert contents(closed(tmp_path / "twice", studies)) == once
    assert contents(closed(tmp_path / "once", studies)) == once


def test_a_study_is_known_by_the_key_of_its_files(tmp_path):
    """`has` answers for the input key: the same study of changed files is another one, and takes its place."""
    writer = grown(tmp_path, [study_of("1.2", 3)])
    assert writer.has("1.2")
    assert not writer.has("other files")
    writer.add("other files", study_of("1.2", 5), GEOMETRY, whole=True)
    finish(writer, ["other files"])
    assert len(found(open_store(tmp_path), "1.2").sop_uids) == 5


def test_a_replaced_study_is_not_taken_up_under_its_old_key(tmp_path):
    """After a study was written anew from other files, the next run does not take the new file for the old."""
    writer = grown(tmp_path, [study_of("1.2", 3)])
    writer.add("other files", study_of("1.2", 5), GEOMETRY, whole=True)
    again = StoreWriter(tmp_path, FINGERPRINT)
    assert again.has("other files")
    assert not again.has("1.2")


def test_a_torn_journal_line_is_a_study_that_never_was(tmp_path):
    """Cut anywhere within its last line, the journal still knows all studies before it, and only those."""
    studies = [study_of(f"1.2.{i}") for i in range(3)]
    grown(tmp_path, studies)
    journal = (tmp_path / JOURNAL).read_bytes()
    start = journal[:-1].rindex(b"\n") + 1
    for end in range(start, len(journal) - 1, 7):
        (tmp_path / JOURNAL).write_bytes(journal[:end])
        writer = StoreWriter(tmp_path, FINGERPRINT)
        assert [writer.has(s.study_uid) for s in studies] == [True, True, False]
    writer.add(studies[2].study_uid, studies[2], GEOMETRY, whole=True)
    assert (tmp_path / JOURNAL).read_bytes() == journal


@pytest.mark.parametrize(
    "line",
    [b"{", b"null", b"[]", b"7", b'{"key": "a"}', b'{"file": 3}', b"\0" * 200, b"\xff\xfe garbage"],
    ids=["brace", "null", "list", "number", "no file", "no name", "zeros", "no text"],
)
def test_rubbish_in_the_journal_is_passed_over(tmp_path, line):
    """Whatever a failing disk leaves at the end of the journal, the run goes on with the studies that are whole."""
    study = study_of("1.2")
    grown(tmp_path, [study])
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(line + b"\n")
    writer = StoreWriter(tmp_path, FINGERPRINT)
    assert writer.has("1.2")
    writer.add("more", study_of("1.3"), GEOMETRY, whole=True)
    assert StoreWriter(tmp_path, FINGERPRINT).has("more")


def test_a_journal_that_names_files_of_others_removes_none(tmp_path):
    """Whoever can write the journal cannot make the store remove what is not its own."""
    grown(tmp_path, [study_of("1.2")])
    (tmp_path / "thesis.docx").write_bytes(b"years")
    (row,) = map(json.loads, (tmp_path / JOURNAL).read_text().splitlines())
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.writelines(f"{json.dumps(line)}\n" for line in (row | {"file": "thesis.docx"}, {"file": "thesis.docx"}))
        for name in row:
            journal.write(json.dumps({k: v for k, v in row.items() if k != name}) + "\n")
    assert StoreWriter(tmp_path, FINGERPRINT).has("1.2")
    assert (tmp_path / "thesis.docx").read_bytes() == b"years"


@pytest.mark.parametrize("harm", ["truncated", "flipped", "removed", "emptied", "longer"])
def test_a_study_file_that_is_not_as_journalled_is_made_again(tmp_path, harm):
    """Size and hash decide, not existence: a file that was harmed is written anew, its neighbour is kept."""
    studies = [study_of("1.2", 6), study_of("1.3", 6)]
    path = file_of(closed(tmp_path, studies), "1.2")
    whole = contents(tmp_path)
    match harm:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "flipped":
            flip(path, 400)
        case "removed":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(path.read_bytes() + b"\0")
    writer = StoreWriter(tmp_path, FINGERPRINT)
    assert not writer.has("1.2")
    assert writer.has("1.3")
    closed(tmp_path, studies)
    assert contents(tmp_path)[path.name] == whole[path.name]
    assert_equal(found(open_store(tmp_path), "1.2"), studies[0])


def test_what_another_encoder_made_is_not_taken_up(tmp_path):
    """Features of another fingerprint are made again, so that no store mixes two encoders."""
    studies = [study_of("1.2"), study_of("1.3")]
    closed(tmp_path, studies)
    assert not StoreWriter(tmp_path, "another encoder").has("1.2")
    closed(tmp_path, studies[:1], "another encoder")
    assert open_store(tmp_path).manifest["fingerprint"] == "another encoder"
    assert not StoreWriter(tmp_path, FINGERPRINT).has("1.2")


def test_a_study_that_lost_slices_is_in_the_store_but_tried_again(tmp_path):
    """What could be read is kept and indexed as not whole; the next run does not take it for finished."""
    writer = grown(tmp_path, [study_of("1.2")])
    writer.add("lost", study_of("1.3", 2), GEOMETRY, whole=False)
    assert not StoreWriter(shutil.copytree(tmp_path, tmp_path / "cut off"), FINGERPRINT).has("lost")
    store = open_store(finish(writer, ["1.2", "lost"]))
    assert dict(zip(store.studies["study_uid"], store.studies["whole"], strict=True)) == {"1.2": True, "1.3": False}
    assert_equal(found(store, "1.3"), study_of("1.3", 2))
    again = StoreWriter(tmp_path, FINGERPRINT)
    assert again.has("1.2")
    assert not again.has("lost")


def test_stale_files_are_removed_when_the_store_is_closed(tmp_path):
    """Studies that are no longer among the input leave the folder and the journal; files of others stay."""
    closed(tmp_path, [study_of("1.2"), study_of("1.3")])
    (tmp_path / "notes.txt").write_bytes(b"mine")
    closed(tmp_path, [study_of("1.3")])
    kept = {MANIFEST, STUDIES, REJECTED, ENCODER, JOURNAL, "notes.txt", file_of(tmp_path, "1.3").name}
    assert contents(tmp_path).keys() == kept
    assert open_store(tmp_path).studies["study_uid"].tolist() == ["1.3"]
    assert not StoreWriter(tmp_path, FINGERPRINT).has("1.2")


@pytest.mark.parametrize("content", [b"1", encode_study(study_of("1.9"))], ids=["rubbish", "a study"])
def test_a_file_that_the_journal_does_not_list_is_never_removed(tmp_path, content):
    """A network or study of others survives every closing, whether it was there before the store or came after."""
    tmp_path.joinpath("mine.safetensors").write_bytes(content)
    closed(tmp_path, [study_of("1.2"), study_of("1.3")])
    (tmp_path / "late.safetensors").write_bytes(content)
    closed(tmp_path, [study_of("1.3")])
    closed(tmp_path, [study_of("1.4")], "another encoder")
    found = contents(tmp_path)
    assert found["mine.safetensors"] == found["late.safetensors"] == content
    studies = found.keys() - {MANIFEST, STUDIES, REJECTED, ENCODER, JOURNAL}
    assert studies == {"mine.safetensors", "late.safetensors", file_of(tmp_path, "1.4").name}


def test_a_harmed_file_that_the_journal_lists_is_removed_with_its_study(tmp_path):
    """What the journal lists is the store's own, whole or not: it goes once its study is gone from the input."""
    closed(tmp_path, [study_of("1.2"), study_of("1.3")])
    flip(file_of(tmp_path, "1.2"))
    closed(tmp_path, [study_of("1.3")])
    assert not file_of(tmp_path, "1.2").exists()
    assert file_of(tmp_path, "1.3").exists()


def test_names_on_disk_tell_nothing(tmp_path):
    """File names come from hashes: no UID, however odd, becomes a path."""
    closed(tmp_path, [study_of("../../etc/passwd"), study_of("1.2/3\n")])
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert all(set(p.stem) <= set("0123456789abcdef") for p in tmp_path.glob("*.safetensors") if p.name != ENCODER)
    assert_equal(found(open_store(tmp_path), "../../etc/passwd"), study_of("../../etc/passwd"))


# A store that is read


@pytest.fixture
def store(tmp_path) -> Path:
    return closed(tmp_path / "store", [study_of(f"1.2.{i}", i + 1, seed=i) for i in range(4)])


def test_studies_come_in_the_order_of_the_index(store):
    """Each study is read as it was written, under its UID, in the order of the index, geometry beside it."""
    opened = open_store(store)
    assert len(opened) == 4
    for i, study in enumerate(opened):
        assert_equal(study, study_of(f"1.2.{i}", i + 1, seed=i))
    assert [s.study_uid for s in opened] == opened.studies["study_uid"].tolist() == [f"1.2.{i}" for i in range(4)]
    assert opened.studies["slices"].tolist() == [1, 2, 3, 4]
    assert opened.studies["patient_key"].tolist() == [f"patient of 1.2.{i}" for i in range(4)]
    for name, value in GEOMETRY.items():
        assert opened.studies[name].tolist() == [value] * 4
    assert opened.manifest["schema"] == SCHEMA
    assert opened.manifest["counts"] == {"files": 9}


def test_a_shuffled_index_changes_nothing_but_the_order(tmp_path):
    """The order in which studies were added is not the identity of their rows."""
    studies = [study_of(f"1.2.{i}", i + 1, seed=i) for i in range(4)]
    writer = grown(tmp_path, studies[::-1])
    opened = open_store(finish(writer, [s.study_uid for s in studies]))
    assert [s.study_uid for s in opened] == [s.study_uid for s in studies]
    for stored, study in zip(opened, studies, strict=True):
        assert_equal(stored, study)


def test_the_manifest_holds_the_hashes_of_what_lies_beside_it(store):
    """Anyone can check a store with sha256sum: manifest for the tables and the encoder, index for the studies."""
    manifest = json.loads((store / MANIFEST).read_text())
    assert manifest["files"] == {name: sha256_file(store / name) for name in (STUDIES, REJECTED, ENCODER)}
    for row in pd.read_parquet(store / STUDIES).itertuples():
        assert row.sha256 == sha256_file(store / row.file)
        assert row.bytes == (store / row.file).stat().st_size


def test_an_unfinished_store_is_refused_with_the_remedy(tmp_path):
    """A folder that was begun but not finished says so and how to finish it; any other folder is no store."""
    grown(tmp_path, [study_of("1.2")])
    with pytest.raises(UsageError, match=r"run extract-features again"):
        open_store(tmp_path)
    for other in (tmp_path / "absent", ROOT / "tests"):
        with pytest.raises(UsageError, match="is not a feature store") as refusal:
            open_store(other)
        assert "again" not in str(refusal.value)


def test_a_store_that_is_regrown_is_not_whole_until_it_is_closed(store):
    """From the first moment of another run the old manifest vouches for nothing; after it, all is as it was."""
    whole = contents(store)
    writer = StoreWriter(store, FINGERPRINT)
    assert not (store / MANIFEST).exists()
    with pytest.raises(UsageError, match=r"run extract-features again"):
        open_store(store)
    writer.close([f"1.2.{i}" for i in range(4)], unused_csv([]), [ENCODER], {"counts": {"files": 9}})
    assert contents(store) == whole
    assert len(open_store(store)) == 4


@pytest.mark.parametrize("name", [STUDIES, REJECTED, ENCODER])
@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_flipped_byte_in_a_table_or_the_encoder_is_refused(store, name, at):
    """A changed index, list of rejected files or encoder is found when the store is opened, and named."""
    flip(store / name, at)
    with pytest.raises(ArtefactError, match=name):
        open_store(store)


@pytest.mark.parametrize("name", [STUDIES, REJECTED, ENCODER])
def test_a_table_or_an_encoder_that_is_gone_is_refused(store, name):
    """A missing table or encoder is named, with the remedy."""
    (store / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        open_store(store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"schema": "ich-seq features 1"}',
        '{"schema": "ich-seq features 3"}',
        '{"schema": "ich-seq bundle 1"}',
        json.dumps({"schema": SCHEMA}),
        json.dumps({"schema": SCHEMA, "files": {}}),
        json.dumps({"schema": SCHEMA, "files": []}),
        json.dumps({"schema": SCHEMA, "files": {STUDIES: "0" * 64, REJECTED: "0" * 64}}),
        json.dumps({"schema": SCHEMA, "files": {STUDIES: "0" * 64, ENCODER: "0" * 64}}),
    ],
)
def test_a_manifest_of_another_kind_is_refused(store, text):
    """No JSON, another schema, or no word on the tables or any encoder: an ArtefactError that names the manifest."""
    (store / MANIFEST).write_text(text)
    with pytest.raises(ArtefactError, match=MANIFEST):
        open_store(store)


@pytest.mark.parametrize("at", [0, 9, 60, -1])
def test_a_study_whose_bytes_were_changed_is_refused(store, at):
    """One flipped bit in a study's file, names or numbers, is found when its turn comes, and no sooner."""
    path = file_of(store, "1.2.2")
    flip(path, at)
    opened = open_store(store)
    before = list(islice(opened, 2))
    assert_equal(before[1], study_of("1.2.1", 2, seed=1))
    with pytest.raises(ArtefactError, match=rf"{path.name}.*SHA-256"):
        list(opened)


def test_exchanged_study_files_are_refused(store):
    """A sound file in another study's place is not taken for it."""
    a, b = file_of(store, "1.2.0"), file_of(store, "1.2.1")
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    with pytest.raises(ArtefactError, match="SHA-256"):
        next(iter(open_store(store)))


def test_a_study_file_that_is_gone_is_refused(store):
    """A missing study file is named, with the remedy."""
    file_of(store, "1.2.0").unlink()
    with pytest.raises(ArtefactError, match="extract the features again"):
        next(iter(open_store(store)))


def test_the_list_of_unused_files_tells_fate_and_reason():
    """One row a file, in the order given, with its study; names that are no Unicode come out escaped."""
    name = b"slice-\xff.dcm".decode("utf-8", "surrogateescape")
    told = unused_csv([Unused("a, b.dcm", Reason.NOT_CT, "An MR."), Unused(name, Reason.DECODE, "Broken.", "1.2.3")])
    assert told == (
        b"file,fate,reason,detail,study_uid,frame\n"
        b'"a, b.dcm",excluded,not_ct,An MR.,,\n'
        b"slice-\\udcff.dcm,rejected,decode,Broken.,1.2.3,\n"
    )
    assert unused_csv([]) == b"file,fate,reason,detail,study_uid,frame\n"


# Embeddings that stay on the disk


@pytest.mark.slow
@given(count=st.integers(1, 12), dim=st.integers(1, 9), logits=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=15)
def test_rows_on_disk_are_those_of_an_array(tmp_path_factory, count, dim, logits, data):
    """However often they are indexed, by numbers, masks or slices with any step, they are the rows of the array."""
    array = study_of("1.2", count, dim=dim, logits=logits)
    rows = found(open_store(closed(tmp_path_factory.mktemp("rows"), [array])), "1.2").features
    truth = array.features
    for _ in range(4):
        assert (len(rows), rows.shape) == (len(truth), truth.shape)
        assert isinstance(rows, RowsOnDisk)
        assert np.asarray(rows).dtype == np.float16
        assert np.array_equal(np.asarray(rows), truth)
        assert np.array_equal(np.asarray(rows, np.float32), truth.astype(np.float32))
        index = data.draw(st_numpy.basic_indices((len(truth),), allow_ellipsis=False, min_dims=1) | masks(len(truth)))
        rows, truth = rows[index], truth[index]


def masks(count: int) -> st.SearchStrategy:
    numbers = st.lists(st.integers(-count, count - 1)) if count else st.just([])
    return numbers.map(lambda x: np.array(x, np.intp)) | st_numpy.arrays(bool, count)


def test_rows_are_read_when_they_are_looked_at_and_not_before(store, monkeypatch):
    """Opening, iterating, measuring and indexing read no embeddings; each look reads those of one file anew."""
    read = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, *a, **k: read.append(path) or fromfile(path, *a, **k))
    studies = list(open_store(store))
    half = studies[3].features[::-2]
    assert (half.shape, len(half), half[1:].shape) == ((2, 16), 2, (1, 16))
    assert not any(isinstance(value, np.ndarray) and value.nbytes > 64 for value in astuple(half))
    assert read == []
    assert np.array_equal(np.asarray(half), study_of("1.2.3", 4, seed=3).features[::-2])
    np.asarray(half)
    assert read == [file_of(store, "1.2.3")] * 2


def test_embeddings_of_a_study_can_be_written_again_from_the_disk(store):
    """A study read from a store is encoded to the bytes it came from."""
    for study in open_store(store):
        assert encode_study(study) == file_of(store, study.study_uid).read_bytes()


@pytest.mark.parametrize("left", [0, 8, -9600, -1], ids=["nothing", "no header", "no rows", "a byte less"])
def test_a_file_cut_short_after_the_store_was_opened_is_refused(tmp_path, left):
    """Rows that are no longer there are an ArtefactError with the file's name, not fewer rows."""
    root = closed(tmp_path, [study_of("1.2", 300)])
    study, path = found(open_store(root), "1.2"), file_of(tmp_path, "1.2")
    data = path.read_bytes()
    assert study.features.offset == len(data) - 9600
    path.write_bytes(data[:left])
    for rows in (study.features, study.features[:1]):
        with pytest.raises(ArtefactError, match=rf"{path.name}.*extract the features again"):
            np.asarray(rows)
    path.write_bytes(data)
    assert np.array_equal(np.asarray(study.features), study_of("1.2", 300).features)


@pytest.mark.parametrize(
    "features",
    [np.ones((3, 16), np.float32), np.ones((3, 16), np.int16), np.ones((3, 4, 4), np.float16), np.ones(3, np.float16)],
    ids=["float32", "int16", "three axes", "one axis"],
)
def test_embeddings_of_another_form_are_refused(tmp_path, features):
    """A store of other numbers than float16 (N, D) would be misread, so it is refused by the name of its file."""
    root = closed(tmp_path, [replace(study_of("1.2"), features=features)])
    with pytest.raises(ArtefactError, match=rf"{file_of(root, '1.2').name}.*of another form"):
        next(iter(open_store(root)))


# A store of several networks


networks_of_studies = st.lists(st.sets(st.integers(0, 3), min_size=1).map(sorted), min_size=1, max_size=8)


@given(networks=networks_of_studies, data=st.data())
@settings(deadline=None, max_examples=12)
def test_each_study_comes_once_and_its_networks_take_turns(tmp_path_factory, networks, data):
    """Whichever networks embedded which study, the i-th study is given by its i-th network, round and round."""
    rows = [
        study_of(f"1.2.{i}", 1 + i, seed=i, network=network, logits=True)
        for i, own in enumerate(networks)
        for network in own
    ]
    known = data.draw(st.sets(st.sampled_from(sorted({s.study_uid for s in rows}))))
    store = open_store(closed(tmp_path_factory.mktemp("turns"), rows, in_sample=known))
    assert (len(store), len(store.studies)) == (len(networks), len(rows))
    expected = [(f"1.2.{i}", own[i % len(own)]) for i, own in enumerate(networks)]
    assert [(s.study_uid, s.network) for s in store] == expected
    for study in store:
        i = int(study.study_uid.rpartition(".")[2])
        assert_equal(study, study_of(study.study_uid, 1 + i, seed=i, network=study.network, logits=True))
    assert store.in_sample() == sorted(known)


def test_every_network_is_seen_in_a_store_of_studies_that_all_embedded(tmp_path):
    """Of six studies that three networks embedded each network gives two: what learns from them sees all three."""
    rows = [study_of(f"1.2.{i}", network=network) for i in range(6) for network in range(3)]
    assert [s.network for s in open_store(closed(tmp_path, rows))] == [0, 1, 2, 0, 1, 2]


def test_the_index_has_a_row_a_study_and_network(tmp_path):
    """Study, network, in-sample mark and file stand row by row; the networks of a study have files of their own."""
    rows = [study_of("1.2", 3, network=network, logits=True) for network in (0, 2)] + [study_of("1.3", 2, network=1)]
    store = open_store(closed(tmp_path, rows, in_sample=["1.3"]))
    table = store.studies
    assert list(zip(table["study_uid"], table["network"], table["in_sample"], strict=True)) == [
        ("1.2", 0, False),
        ("1.2", 2, False),
        ("1.3", 1, True),
    ]
    assert table["in_sample"].dtype == bool
    assert table["file"].tolist() == [file_of(tmp_path, s.study_uid, s.network).name for s in rows]
    for file, study in zip(table["file"], rows, strict=True):
        assert_equal(decode_study((tmp_path / file).read_bytes(), HERE), study)
    assert store.in_sample() == ["1.3"]


def test_an_in_sample_study_of_several_networks_is_named_once(tmp_path):
    """What is listed are studies, sorted, not rows; where no row is marked nothing is listed."""
    rows = [study_of(uid, network=network) for uid in ("1.9", "1.2", "1.5") for network in range(3)]
    assert open_store(closed(tmp_path / "known", rows, in_sample=["1.9", "1.2"])).in_sample() == ["1.2", "1.9"]
    assert open_store(closed(tmp_path / "unknown", rows)).in_sample() == []


def test_a_mark_survives_an_interruption(tmp_path):
    """Rows taken up from the journal keep their mark: the store's bytes are those of a run in one go."""
    rows = [study_of(f"1.2.{i}", network=network, logits=True) for i in range(3) for network in range(2)]
    known = ["1.2.0", "1.2.2"]
    once = contents(closed(tmp_path / "once", rows, in_sample=known))
    grown(tmp_path / "twice", rows[:3], in_sample=known)
    assert contents(closed(tmp_path / "twice", rows, in_sample=known)) == once
    assert open_store(tmp_path / "twice").in_sample() == known


def test_a_network_that_is_missing_is_one_row_that_is_missing(tmp_path):
    """Cut off between two networks of a study, the journal knows the first row and not the second."""
    first, second = (study_of("1.2", network=network) for network in range(2))
    writer = grown(tmp_path, [first])
    assert (writer.has(key_of(first)), writer.has(key_of(second))) == (True, False)
    closed(tmp_path, [first, second])
    again = StoreWriter(tmp_path, FINGERPRINT)
    assert again.has(key_of(first))
    assert again.has(key_of(second))


def test_a_network_that_no_longer_embeds_a_study_leaves_the_folder(tmp_path):
    """A row that is not among those of the run is removed with its file; the study's other network stays."""
    rows = [study_of("1.2", network=network) for network in range(2)]
    closed(tmp_path, rows)
    closed(tmp_path, rows[1:])
    assert not file_of(tmp_path, "1.2", 0).exists()
    assert [s.network for s in open_store(tmp_path)] == [1]


@pytest.mark.parametrize("network", range(3))
def test_any_encoder_that_was_changed_or_is_gone_is_refused(tmp_path, network):
    """The manifest vouches for every encoder: each one changed, or missing, is named when the store is opened."""
    root = closed(tmp_path, [study_of("1.2", network=network) for network in range(3)])
    manifest = json.loads((root / MANIFEST).read_text())
    assert manifest["files"].keys() == {STUDIES, REJECTED, *(encoder_file(k) for k in range(3))}
    path = root / encoder_file(network)
    flip(path)
    with pytest.raises(ArtefactError, match=path.name):
        open_store(root)
    path.unlink()
    with pytest.raises(ArtefactError, match=path.name):
        open_store(root)


# A store of several processes

TURN = "0f" * 8


def test_a_group_closes_a_store_to_the_bytes_of_one_process(tmp_path):
    """Two processes add what the first one then takes; no journal is left but its own."""
    studies = [study_of(f"1.2.{i}", 1 + i, seed=i) for i in range(5)]
    writer = grown(tmp_path / "two", studies[:2])
    parts = {part_journal(TURN, rank): studies[1 + rank :: 2] for rank in (1, 2)}
    assert sorted(s.study_uid for own in parts.values() for s in own) == ["1.2.2", "1.2.3", "1.2.4"]
    for name, own in parts.items():
        writer.take(added_apart(tmp_path / "two", name, own).added(), [name])
    assert writer.added() == []
    finish(writer, [s.study_uid for s in studies], facts={"counts": {"files": 9}})
    closed(tmp_path / "one", studies)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def added_apart(root: Path, part: str, studies: list[StudyFeatures]) -> StoreWriter:
    """Add studies as a process does that is not the first of its group."""
    writer = StoreWriter(root, FINGERPRINT, part=part)
    for study in studies:
        writer.add(key_of(study), study, GEOMETRY, whole=True)
    return writer


@pytest.mark.slow
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    torn=st.sets(st.integers(1, 3)),
    taken=st.sets(st.integers(1, 3)),
)
@settings(deadline=None, max_examples=15)
def test_whoever_opens_a_store_takes_up_what_every_process_had_finished(tmp_path_factory, owners, torn, taken):
    """Whichever journals lost their last line, or were taken but not yet removed: nothing whole is done again."""
    root = tmp_path_factory.mktemp("parts")
    studies = [study_of(f"1.2.{i}", 2, seed=i) for i in range(len(owners))]
    of = {rank: [s for s, owner in zip(studies, owners, strict=True) if owner == rank] for rank in range(4)}
    writer = grown(root, of[0])
    whole = {s.study_uid for s in of[0]}
    for rank in (1, 2, 3):
        part = added_apart(root, part_journal(TURN, rank), of[rank])
        journal = root / part_journal(TURN, rank)
        whole |= {s.study_uid for s in of[rank][: -1 if rank in torn - taken else None]}
        if rank in taken:
            writer.take(part.added(), [])
        elif rank in torn and of[rank]:
            journal.write_bytes(journal.read_bytes()[:-9])
    again = StoreWriter(root, FINGERPRINT)
    assert {s.study_uid for s in studies if again.has(s.study_uid)} == whole
    assert [path.name for path in root.glob(".journal*")] == [JOURNAL]
    again = grown(root, studies)
    finish(again, [s.study_uid for s in studies], facts={"counts": {"files": 9}})
    other = closed(tmp_path_factory.mktemp("one"), studies)
    assert contents(root) == contents(other)


def test_a_journal_of_its_own_can_make_the_store_remove_nothing_of_others(tmp_path):
    """It is believed no more than the store's: names that the store does not give, links and pipes are passed over."""
    grown(tmp_path, [study_of("1.2")])
    (tmp_path / "thesis.docx").write_bytes(b"years")
    (row,) = map(json.loads, (tmp_path / JOURNAL).read_text().splitlines())
    (tmp_path / part_journal(TURN, 1)).write_text(json.dumps(row | {"file": "thesis.docx"}))
    (tmp_path / part_journal(TURN, 2)).symlink_to(tmp_path / "thesis.docx")
    os.mkfifo(tmp_path / part_journal(TURN, 3))
    (tmp_path / ".journal-of-a-voyage.jsonl").write_bytes(b"days")
    assert StoreWriter(tmp_path, FINGERPRINT).has("1.2")
    assert (tmp_path / "thesis.docx").read_bytes() == b"years"
    assert (tmp_path / ".journal-of-a-voyage.jsonl").exists()


def test_a_process_whose_journal_was_taken_away_says_so(tmp_path):
    """Another run has taken it up: what this one would tell of its studies is no longer so."""
    grown(tmp_path, [])
    part = added_apart(tmp_path, part_journal(TURN, 1), [study_of("1.2")])
    assert StoreWriter(tmp_path, FINGERPRINT).has("1.2")
    with pytest.raises(OutputError, match="changed meanwhile"):
        part.added()

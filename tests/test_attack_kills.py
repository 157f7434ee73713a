"""Kills are survived; a package that writes in place is found out, and so is every mix of two results."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest_plugins = ["grounds", "weakened"]

pytestmark = pytest.mark.slow


def test_a_slice_of_the_kills_finds_nothing(tmp_path, scene, zygote):
    from attacks.kills import POINTS, run

    outcome = run(tmp_path, scene=scene, zygote=zygote, scale=3 / POINTS, commands=("extract-features",))
    assert outcome.failures == ()
    assert (outcome.trials, outcome.figures["extract-features"]) == (3, 3)
    assert outcome.figures["struck"] >= 2


def test_writing_in_place_does_not_survive_the_kills(tmp_path, scene, weak_zygote):
    from attacks.kills import POINTS, run

    outcome = run(tmp_path, scene=scene, zygote=weak_zygote, scale=6 / POINTS, seed=1, commands=("extract-features",))
    assert any("right after it manifest.json is that of no run" in failure for failure in outcome.failures)


@pytest.fixture
def finished(tmp_path, scene):
    """Give a command's finished result in a folder of its own, and its course as far as it is needed here."""
    import shutil

    from attacks.resumption import Course
    from attacks.scene import RESULTS, tree

    def make(command):
        out = shutil.copytree(scene.root / RESULTS[command], tmp_path / command)
        return out, Course(
            name=command, command=command, arguments=(), older=None, code=0, seconds=1.0, letters="w",
            whole=tree(out), folders=frozenset(), stale="",
        )  # fmt: skip

    return make


COMMANDS = ("train-cnn", "extract-features", "train-rnn", "predict")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_whole_result_is_not_torn(finished, command):
    from attacks.resumption import torn

    out, course = finished(command)
    assert torn(course, out) == ""
    (out / "half.csv.ich-seq-partial").write_text("half of")
    assert torn(course, out) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_folder_is_not_torn(finished, command, tmp_path):
    from attacks.resumption import torn

    _, course = finished(command)
    assert torn(course, tmp_path / "nothing") == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_in_which_a_file_is_another_one_is_torn(finished, command):
    from attacks.resumption import MANIFESTS, torn

    out, course = finished(command)
    vouched = "fold-1/held_out.csv" if command == "train-cnn" else min(set(course.whole) - {MANIFESTS[command]})
    (out / vouched).write_bytes(course.whole[vouched][:-1])
    assert vouched in torn(course, out)


@pytest.mark.parametrize("command", COMMANDS)
def test_half_a_manifest_is_torn(finished, command):
    from attacks.resumption import MANIFESTS, torn

    out, course = finished(command)
    manifest = MANIFESTS[command]
    (out / manifest).write_bytes(course.whole[manifest][:100])
    assert torn(course, out) == f"{manifest} is that of no run"


def test_an_older_manifest_beside_newer_files_is_torn(finished, tmp_path):
    from attacks.resumption import torn

    out, course = finished("predict")
    older = {name: data for name, data in course.whole.items() if "report/" not in name}
    for name, data in older.items():
        (tmp_path / "older" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "older" / name).write_bytes(data)
    newer = course.whole | {"run.json": b"{}\n"}
    assert "vouches for" in torn(replace(course, whole=newer, older=tmp_path / "older"), out)


def test_tables_that_no_run_made_are_torn_though_there_is_no_manifest(finished):
    from attacks.resumption import torn

    out, course = finished("predict")
    (out / "run.json").unlink()
    assert torn(course, out) == ""
    table = out / "slices.csv"
    table.write_text(table.read_text().replace("0.", "0.0", 1))
    assert torn(course, out) == "torn tables are taken"

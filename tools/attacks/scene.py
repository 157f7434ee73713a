"""What the attacks are made on: a few small studies, and what each command makes of them, trained for seconds.

SCENE/  dicom/  labels.csv  settings.toml  cnn/  features/  bundle/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attacks.zygote import Zygote
from ich_seq.phantom import write_dataset

SETTINGS = """\
[slices]
size = 32
[encoder]
arch = "test_convnext"
weights = "random"
[cnn]
folds = 3
epochs = 1
head_epochs = 0.0
batch_slices = 16
precision = "fp32"
checkpoint_minutes = 0.0
[train]
folds = 3
epochs = 4
checkpoint_minutes = 0.0
[rnn]
projection = 8
hidden = 8
"""
"""The smallest networks there are; a state is written after each step, so that a kill finds one."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A folder with data and with one finished result of each command."""

    root: Path

    @property
    def dicom(self) -> Path:
        """Return the folder of DICOM files."""
        return self.root / "dicom"

    @property
    def labels(self) -> Path:
        """Return the label file."""
        return self.root / "labels.csv"

    def arguments(self, command: str, out: Path) -> list[str]:
        """Return the command line that makes `out` by a command from what the scene holds."""
        config = ["--config", str(self.root / "settings.toml")]
        given = {
            "train-cnn": [str(self.dicom), "--labels", str(self.labels), *config, "--workers", "0"],
            "extract-features": [str(self.dicom), "--cnn", str(self.root / "cnn"), *config, "--workers", "0"],
            "train-rnn": [str(self.root / "features"), "--labels", str(self.labels), *config],
            "predict": [str(self.dicom), "--bundle", str(self.root / "bundle"), "--workers", "0"],
        }[command]
        return [command, *given, "--out", str(out), "--device", "cpu", "--quiet"]


RESULTS = {"train-cnn": "cnn", "extract-features": "features", "train-rnn": "bundle", "predict": "results"}
"""The folder of a scene that each command makes, in the order in which they need each other."""


def build(root: Path, zygote: Zygote, *, studies: int = 6, matrix: int = 64) -> Scene:
    """Draw studies and run every command on them once."""
    write_dataset(root, n_studies=studies, matrix=matrix)
    scene = Scene(root)
    (root / "settings.toml").write_text(SETTINGS)
    for command, folder in RESULTS.items():
        done = zygote.run(scene.arguments(command, root / folder))
        if done.code not in (0, 3):
            raise RuntimeError(f"{command} ended with {done.code}: {done.stderr}")
    return scene


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but for locks and journals, which tell how a run went and not what it made."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name not in (".lock", ".journal.jsonl")
    }

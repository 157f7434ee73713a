"""Speed, measured: each figure is a ratio of medians, both sides timed in turn in one run.

    python tools/bench.py extract [--arch tf_efficientnet_lite0] [--engine torch] [--precision fp32]
    python tools/bench.py read      decode + HU + resize + windows of a slice on one core, against the naive way
    python tools/bench.py headers   files indexed a second
    python tools/bench.py memory    resident memory while thousands of studies are embedded
    python tools/bench.py train-rnn an epoch over a store of RSNA 2019's size, made on the spot (2 GB)
    python tools/bench.py evaluate  2,000 resamples of the figures of predictions of RSNA 2019's size
    python tools/bench.py scale     two processes of a core each against one [--engine torch] [--studies 60]

`extract` times (a) our extraction from files to store, networks loaded; (b) the bare forward of the same
network, engine, batch and precision on tensors at hand: what no extraction can beat; (c) the way the
winners of RSNA 2019 did it: pydicom pixel_array, float windows at full size, cv2 resize, a DataLoader of
one process a core, an eager fp32 NCHW forward. (c) runs in a process of its own, as a user's script would.

`train-rnn` times (a) a step of train-rnn, studies read from the store, batches of like lengths, (b) the same
model's step on batches that are there, and (c) on batches padded to the longest study of the set, and prints
the peak of resident memory after an epoch.

`scale` times (a) extract-features as one process with one core and one thread, (b) as two under torchrun, and (c)
two runs of (a) side by side, a core each, whose slowness is the machine's alone (shared caches, memory, clocks). The
efficiency of (b) is a/2b; what of it is ours is c/2b. Whole commands start with seconds of imports and end with the
index; the embedding phase lies between the last header of the first process and the store's manifest.

Without --dicom the files are phantoms of 512 x 512, drawn once into --work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from pydicom import dcmread

import ich_seq
from ich_seq import windows
from ich_seq.config import Config, load_config
from ich_seq.devices import autocast, choose_device, choose_workers, keep_memory
from ich_seq.engines import Embedder, compile_openvino
from ich_seq.extraction import fill_store, open_networks
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS
from ich_seq.phantom import write_dataset
from ich_seq.progress import silent
from ich_seq.readers import read_ahead
from ich_seq.report import SLICES, STUDIES
from ich_seq.sequence_fitting import SequenceTask, SequenceTraining
from ich_seq.sequences import Batch, LabelledStudy
from ich_seq.store import MANIFEST, StoreWriter, StudyFeatures, encoder_file, open_store
from ich_seq.studies import find_studies

SIZE, BATCH = 256, Config().extract.batch_size
NAIVE_BATCH = 32
WIDTH, STEPS = 1280, 100
PREVALENCE = (0.004, 0.048, 0.035, 0.048, 0.063, 0.0)
WINDOWS = ((40.0, 80.0), (80.0, 200.0), (600.0, 2800.0))


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHES])
    parser.add_argument("--dicom", type=Path, help="files to read instead of phantoms")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="train-rnn: a setting, key=value")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    BENCHES[chosen.what](chosen)


def phantoms(chosen: argparse.Namespace, *, matrix: int = 512) -> Path:
    """Return the files to read: those given, or phantoms drawn once."""
    folder = chosen.work / f"phantoms-{matrix}-{chosen.studies}"
    if chosen.dicom is not None:
        return chosen.dicom
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_dataset(folder, n_studies=chosen.studies, seed=0, matrix=matrix, workers=choose_workers(None))
        (folder / "done").touch()
    return folder / "dicom"


def extract(chosen: argparse.Namespace) -> None:
    """Print (a) ours, (b) the bare forward and (c) the naive way, slices a second, and their ratios."""
    dicom, config = phantoms(chosen), config_of(chosen)
    keep_memory()
    networks = open_networks(config, choose_device(chosen.device))
    forward = bare_forward(networks.embedders[0])
    speeds: dict[str, list[float]] = {"a ours": [], "b bare forward": [], "c naive": []}
    for turn in range(chosen.rounds + 1):  # the first turn warms up and does not count
        ours = ours_once(dicom, chosen.work / "store", networks)
        bare = bare_once(forward, ours[0], networks.embedders[0])
        slow = naive_once(chosen, dicom)
        if turn:
            for name, speed in zip(speeds, (ours[0] / ours[1], bare, slow), strict=True):
                speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    a, b, c = medians.values()
    report(chosen, medians, {"a/b": a / b, "a/c": a / c}, speeds)


def config_of(chosen: argparse.Namespace) -> Config:
    """Return the settings of the run: ImageNet weights where they are at hand, else random ones."""
    weights = "imagenet" if chosen.arch == "tf_efficientnet_lite0" else "random"
    return Config.model_validate(
        {
            "slices": {"size": SIZE},
            "encoder": {"arch": chosen.arch, "weights": weights},
            "extract": {"batch_size": BATCH, "engine": chosen.engine, "precision": chosen.precision},
        }
    )


def ours_once(dicom: Path, out: Path, networks) -> tuple[int, float]:
    """Extract everything into a new store; return the slices and the seconds."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    summary = fill_store(dicom, out, networks, workers=choose_workers(None), progress=silent)
    return summary.counts.used, time.perf_counter() - began


def bare_forward(embedder: Embedder) -> Callable[[object], object]:
    """Return one forward pass of the network alone, on a normalised batch that is there."""
    network, device, chosen = embedder.encoder.network, embedder.device, embedder.execution
    normalised = np.random.default_rng(0).uniform(-1, 1, (embedder.batch_size, 3, SIZE, SIZE))
    shown = torch.from_numpy(normalised.astype(np.float32))
    if chosen.engine == "openvino":
        compiled, _ = compile_openvino(network, (3, SIZE, SIZE), chosen.precision)
        return lambda _: compiled(shown)
    resident = shown.to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(_: object) -> torch.Tensor:
        with autocast(device, chosen.precision):
            return network(resident).cpu()

    return forward


def bare_once(forward: Callable[[object], object], slices: int, embedder: Embedder) -> float:
    """Return the slices a second of the network alone, on as many batches at once as keep the processor busiest."""
    ahead, batches = embedder.streams if embedder.streams > 1 else 0, max(2, slices // embedder.batch_size)
    return batches * embedder.batch_size / seconds(lambda: list(read_ahead(forward, range(batches), ahead)))


def naive_once(chosen: argparse.Namespace, dicom: Path) -> float:
    """Return the slices a second of the naive way, in a process of its own, its start not counted."""
    command = [
        sys.executable,
        __file__,
        "naive",
        "--dicom",
        str(dicom),
        "--arch",
        chosen.arch,
        "--device",
        chosen.device,
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class NaiveSlices(torch.utils.data.Dataset):
    """Slices as most published code reads them."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(naive_slice(self.files[i]))


def naive_slice(path: Path) -> np.ndarray:
    """Read one slice: pixel_array, floats, each window at full size, then a resize each."""
    dataset = dcmread(path)
    hu = dataset.pixel_array.astype(np.float32) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    channels = []
    for level, width in WINDOWS:
        shown = np.clip(hu, level - width / 2, level + width / 2)
        shown = (shown - (level - width / 2)) / width
        channels.append(cv2.resize(shown, (SIZE, SIZE)))
    return ((np.stack(channels) - 0.5) / 0.5).astype(np.float32)


def naive(chosen: argparse.Namespace) -> None:
    """Print the slices a second of the naive way."""
    import timm

    device = choose_device(chosen.device)
    network = timm.create_model(chosen.arch, pretrained=False, num_classes=0).eval().to(device)
    files = sorted(p for p in chosen.dicom.rglob("*") if p.is_file())
    with torch.no_grad():
        network(torch.zeros(NAIVE_BATCH, 3, SIZE, SIZE, device=device))
        began = time.perf_counter()
        loader = torch.utils.data.DataLoader(
            NaiveSlices(files), batch_size=NAIVE_BATCH, num_workers=choose_workers(None)
        )
        for batch in loader:
            network(batch.to(device)).cpu()
    print(len(files) / (time.perf_counter() - began))


def read(chosen: argparse.Namespace) -> None:
    """Print milliseconds a slice from file to windowed tensor, ours and the naive way, on one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    studies = find_studies(phantoms(chosen)).studies
    headers = [h for s in studies for h in s.slices][:256]
    ours = lambda h: windows.apply(  # noqa: E731
        torch.from_numpy(windows.resample(read_hounsfield(h), h.spacing_mm, field_mm=250.0, size=SIZE))[None, None],
        WINDOWS,
    )
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    for turn in range(chosen.rounds + 1):
        for name, once in (("ours", ours), ("naive", lambda h: naive_slice(h.path))):
            milliseconds = 1e3 * seconds(lambda once=once: [once(h) for h in headers]) / len(headers)
            if turn:
                times[name].append(milliseconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    report(chosen, medians, {"naive/ours": medians["naive"] / medians["ours"]}, times)


def headers(chosen: argparse.Namespace) -> None:
    """Print how many files a second are read, grouped and ordered, in a process that has loaded nothing else.

    Worker processes load what their parent's script does; this one loads torch, the command line does not.
    """
    code = (
        "import sys, time; from pathlib import Path; from ich_seq.studies import find_studies\n"
        "for _ in range(int(sys.argv[3])):\n"
        "    began = time.perf_counter(); n = find_studies(Path(sys.argv[1]), workers=int(sys.argv[2])).n_files\n"
        "    print(n / (time.perf_counter() - began))\n"
    )
    command = [sys.executable, "-c", code, str(phantoms(chosen)), str(choose_workers(None)), str(chosen.rounds + 1)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    speeds = [float(line) for line in printed.splitlines()]
    report(chosen, {"files a second": statistics.median(speeds[1:])}, {}, {"speeds": speeds})


def memory(chosen: argparse.Namespace) -> None:
    """Print resident memory, MB, at tenths of a run over many small studies."""
    dicom, config = phantoms(chosen, matrix=64), config_of(chosen)
    keep_memory()
    networks = open_networks(config, choose_device(chosen.device))
    tenths: dict[str, float] = {}

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "embedding studies" and done * 10 % total < 10:
            tenths[f"{done} of {total}"] = resident_mb()

    shutil.rmtree(chosen.work / "store", ignore_errors=True)
    fill_store(dicom, chosen.work / "store", networks, workers=choose_workers(None), progress=watch)
    report(chosen, tenths, {}, {})


def train_rnn(chosen: argparse.Namespace) -> None:
    """Print seconds an epoch of (a) train-rnn, (b) bare steps, (c) steps on padded batches, and peak memory."""
    config = load_config(None, chosen.settings)
    studies = [labelled(study) for study in open_store(sequence_store(chosen))]
    slices, longest = sum(map(len, studies)), max(map(len, studies))
    task = SequenceTask(
        name="bench", learn=studies, stop=studies[:64], rnn=config.rnn, options=config.train, seed=0,
        device=choose_device(chosen.device),
    )  # fmt: skip
    training = SequenceTraining(task)
    began = time.perf_counter()
    for batch in training.batches_to_come():
        training.learn(batch)
    epoch, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speeds: dict[str, list[float]] = {"a train-rnn": [], "b bare": [], "c padded": []}
    for turn in range(chosen.rounds + 1):
        training.epoch, training.step = turn + 1, (turn + 1) * training.steps
        there = list(itertools.islice(training.batches_to_come(), STEPS))
        count, taken = steps(training, itertools.islice(training.batches_to_come(), STEPS))
        whole = [padded(batch, longest) for batch in there]
        if turn:
            speeds["a train-rnn"].append(count / taken)
            speeds["b bare"].append(count / steps(training, there)[1])
            speeds["c padded"].append(count / steps(training, whole)[1])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    a, b, c = medians.values()
    sizes = {"studies": len(studies), "slices": slices, "epoch s": epoch, "peak rss MB": peak}
    report(chosen, sizes | medians, {"epoch/bare epoch": b / a, "padded/ours": a / c}, speeds)


def labelled(study: StudyFeatures) -> LabelledStudy:
    """Give a study labels, drawn from its name; what they are does not change the time."""
    rng = np.random.default_rng(int(study.study_uid))
    return LabelledStudy(
        features=study, targets=(rng.random((len(study.features), len(LABELS))) < 0.1).astype(np.uint8)
    )


def sequence_store(chosen: argparse.Namespace) -> Path:
    """Make a store of as many studies as asked for, 20 to 60 slices each (RSNA 2019: 34.6 a study), D = 1280."""
    root = chosen.work / f"store-{chosen.studies}"
    if (root / MANIFEST).exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    writer, rng = StoreWriter(root, "bench"), np.random.default_rng(0)
    for number in range(chosen.studies):
        n = int(np.clip(round(rng.gamma(20, 1.73)), 20, 60))
        study = StudyFeatures(
            study_uid=str(number),
            patient_key=str(number),
            sop_uids=tuple(f"{number}.{i}" for i in range(n)),
            positions_mm=5.0 * np.arange(n),
            features=rng.standard_normal((n, WIDTH), dtype=np.float32).astype(np.float16),
            logits=rng.standard_normal((n, len(LABELS)), dtype=np.float32),
        )
        writer.add(str(number), study, {}, whole=True)
    (root / encoder_file(0)).write_bytes(b"")  # a store has an encoder; this one is of no use
    writer.close([str(number) for number in range(chosen.studies)], b"", [encoder_file(0)], {})
    return root


def evaluate(chosen: argparse.Namespace) -> None:
    """Print the seconds that evaluate takes, 2,000 resamples, over tables of as many studies as asked for."""
    tables = prediction_tables(chosen)
    times = [
        seconds(lambda: ich_seq.evaluate(tables, tables / "labels.csv", chosen.work / "evaluation"))
        for _ in range(chosen.rounds)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(chosen, {"seconds": statistics.median(times), "peak rss MB": peak}, {}, {"seconds": times})


def prediction_tables(chosen: argparse.Namespace) -> Path:
    """Write tables as predict does, of three predictors, and labels of RSNA's prevalence, ten in eleven patients."""
    root, rng = chosen.work / f"tables-{chosen.studies}", np.random.default_rng(0)
    if (root / "labels.csv").exists():
        return root
    root.mkdir(parents=True, exist_ok=True)
    of = np.repeat(np.arange(chosen.studies), np.clip(rng.gamma(20, 1.73, chosen.studies).round(), 20, 60).astype(int))
    truth = rng.random((len(of), len(LABELS))) < PREVALENCE
    truth[:, -1] = truth[:, :-1].any(axis=1)
    said = {
        prefix + label: 1 / (1 + np.exp(2 - 3 * truth[:, k] - rng.normal(size=len(of))))
        for prefix in ("", "cnn_", "rnn_")
        for k, label in enumerate(LABELS)
    }
    slices = pd.DataFrame(
        {"study_uid": of, "sop_uid": np.arange(len(of)), "position_mm": 5.0 * np.arange(len(of))} | said
    )
    studies = slices.groupby("study_uid", as_index=False)[list(said)].max()
    studies.assign(patient=studies["study_uid"] * 10 // 11).to_csv(root / STUDIES, index=False)
    slices.to_csv(root / SLICES, index=False, float_format="%.6f")
    pd.DataFrame(truth.astype(int), columns=list(LABELS)).assign(ID=slices["sop_uid"]).to_csv(
        root / "labels.csv", index=False
    )
    return root


def scale(chosen: argparse.Namespace) -> None:
    """Print the seconds of one process, two together and two apart, whole and while they embed, and efficiencies."""
    dicom, cores = phantoms(chosen), sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two cores are needed, and this process may use one.")
    times: dict[str, list[float]] = {f"{side} {part}": [] for part in ("whole", "embedding") for side in "abc"}
    for turn in range(chosen.rounds + 1):  # the first turn warms up and does not count
        sides = {
            "a": lambda: timed_extractions(chosen, dicom, 1, [{cores[0]}]),
            "b": lambda: timed_extractions(chosen, dicom, 2, [set(cores)]),
            "c": lambda: timed_extractions(chosen, dicom, 1, [{core} for core in cores]),
        }
        for side in sorted(sides, reverse=turn % 2 == 1):
            whole, embedding = sides[side]()
            if turn:
                times[f"{side} whole"].append(whole)
                times[f"{side} embedding"].append(embedding)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        f"{name} {part}": medians[f"{side} {part}"] / (2 * medians[f"b {part}"])
        for part in ("whole", "embedding")
        for name, side in (("a/2b", "a"), ("c/2b", "c"))
    }
    report(chosen, medians, ratios, times)


def timed_extractions(
    chosen: argparse.Namespace, dicom: Path, size: int, cores_of_each: list[set[int]]
) -> tuple[float, float]:
    """Run extract-features as so many processes, and several such side by side on cores of their own.

    Returns the seconds of the slowest: whole, and while it embeds.
    """
    settings = [
        f"slices.size={SIZE}", f"encoder.arch={chosen.arch}", f"extract.precision={chosen.precision}",
        f"encoder.weights={config_of(chosen).encoder.weights}",
    ]  # fmt: skip
    began, running = time.time(), []
    for number, cores in enumerate(cores_of_each):
        out = chosen.work / f"scale-{number}"
        shutil.rmtree(out, ignore_errors=True)
        words = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)),
            *("-m", "ich_seq.cli", "extract-features", str(dicom), "--out", str(out), "--engine", chosen.engine),
            *("--device", "cpu", "--json", *(word for setting in settings for word in ("--set", setting))),
        ]
        command = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *words]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append((process, out))
    with ThreadPoolExecutor(len(running)) as watchers:
        read = list(watchers.map(lambda each: headers_read(each[0]), running))
    whole = time.time() - began
    embedded = [(out / MANIFEST).stat().st_mtime for _, out in running]
    return whole, max(end - start for start, end in zip(read, embedded, strict=True))


def headers_read(process: subprocess.Popen[str]) -> float:
    """Wait for a command's end; return when its first process had read its headers."""
    assert process.stderr is not None
    told: list[str] = []
    read = 0.0
    for line in process.stderr:
        told.append(line)
        if line.startswith("reading headers: ") and len(set(line.split()[2::2])) == 1:  # "N of N"
            read = time.time()
    if process.wait() or not read:
        raise RuntimeError("".join(told))
    return read


def steps(training: SequenceTraining, batches: Iterable[Batch]) -> tuple[int, float]:
    """Take a step on each batch; return the slices seen and the seconds."""
    began, count = time.perf_counter(), 0
    for batch in batches:
        training.learn(batch)
        count += int(batch.lengths.sum())
    return count, time.perf_counter() - began


def padded(batch: Batch, longest: int) -> Batch:
    """Return a batch in which every study is as long as the longest of the set, as where nothing is packed."""
    more = longest - batch.features.shape[1]
    wider = lambda x: torch.nn.functional.pad(x, (0, 0, 0, more))  # noqa: E731
    return Batch(
        features=wider(batch.features),
        positions_mm=torch.nn.functional.pad(batch.positions_mm, (0, more)),
        lengths=torch.full_like(batch.lengths, longest),
        targets=wider(batch.targets),
        logits=wider(batch.logits),
    )


def resident_mb() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(chosen: argparse.Namespace, medians: dict, ratios: dict, all_values: dict) -> None:
    """Print the result as JSON."""
    setting = {"what": chosen.what, "arch": chosen.arch, "engine": chosen.engine, "precision": chosen.precision}
    rounded = {k: round(v, 3) for k, v in (medians | ratios).items()}
    raw = {k: [round(v, 3) for v in values] for k, values in all_values.items()}
    print(json.dumps({**setting, "cores": choose_workers(None), **rounded, "all": raw}))


BENCHES: dict[str, Callable[[argparse.Namespace], None]] = {
    "extract": extract,
    "read": read,
    "headers": headers,
    "memory": memory,
    "train-rnn": train_rnn,
    "evaluate": evaluate,
    "scale": scale,
    "naive": naive,
}

if __name__ == "__main__":
    main()

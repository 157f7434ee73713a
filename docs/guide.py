# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # The guide: from slices to a submission
#
# Blood in the head shows on CT within minutes, and somebody has to look. This notebook walks the whole way once: what
# the data are, what a Hounsfield unit is and why it is looked at through windows, a network that judges single slices,
# a recurrent network that reads the slices of a study in their order, and the table that Kaggle wants. Research use
# only; not a medical device.
#
# It draws its own data, since nobody may hand the challenge's on: heads made by a program, with bleeds of five kinds.
# **All figures below are of drawn heads. They show that the stages work, and nothing about patients.** With the real
# data, name the folders in the next cell and take the time: hours on a GPU, days without.

# %%
import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import ich_seq
from ich_seq.config import load_config
from ich_seq.figures import table
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS, read_labels
from ich_seq.phantom import write_dataset
from ich_seq.pictures import WINDOWS_HU, shown
from ich_seq.studies import find_studies

OUT = Path("guide-results")
DATA, LABEL_FILE = None, None  # Path("stage_2_train"), Path("stage_2_train.csv")
NEW, NEW_LABEL_FILE = None, None  # Path("stage_2_test"); its labels were never published: leave that one None

SETTINGS = []  # of real data: the defaults
if DATA is None:
    SETTINGS = ["slices.size=96", "cnn.folds=3", "cnn.epochs=2", "cnn.head_epochs=0.25", "train.folds=3"]
    SETTINGS += ["train.epochs=12", "cnn.precision=fp32"]
    for name, studies, seed in (("train", 36, 0), ("new", 12, 1)):
        if not (OUT / name).exists():
            write_dataset(OUT / name, n_studies=studies, seed=seed, matrix=128, workers=2)
    DATA, LABEL_FILE = OUT / "train" / "dicom", OUT / "train" / "labels.csv"
    NEW, NEW_LABEL_FILE = OUT / "new" / "dicom", OUT / "new" / "labels.csv"
config = load_config(overrides=SETTINGS)

# %% [markdown]
# ## Exploring the data
#
# A CT study is some thirty pictures, each a file. The files come in no order, studies mixed, and some are no slices at
# all: scouts, screenshots, damaged ones. `explore` reads all headers, counts what it finds and says why a file is not
# used. It also writes a page, `exploration.html`; here we look at the numbers.

# %%
explored = ich_seq.explore(DATA, OUT / "exploration", LABEL_FILE).exploration
counts = explored["counts"]
print(f"{counts['files']} files: {counts['used']} used, {counts['excluded']} excluded, {counts['rejected']} rejected")
print("why not used:", counts["reasons"])
print(f"{counts['slices']} slices, {counts['studies']} studies, {counts['patients']} patients")

# %% [markdown]
# How often is each kind of bleed there? In slices it is rare, in studies less so: a bleed takes some slices of a study.
# The right chart shows where along the head each lies. That alone predicts something, and a model has to beat it.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
where = np.arange(len(LABELS))
for offset, level in ((-0.2, "slices"), (0.2, "studies")):
    shares = [explored["prevalence"][level][label]["share"] for label in LABELS]
    left.barh(where + offset, shares, 0.4, label=f"of {level}")
left.set_yticks(where, LABELS)
left.invert_yaxis()
left.set_xlabel("share with the label")
left.legend()
profile = explored["profile"]
middles = (np.array(profile["edges"][1:]) + profile["edges"][:-1]) / 2
for label in LABELS:
    right.plot(middles, [np.nan if share is None else share for share in profile["share"][label]], label=label)
right.set_xlabel("place in the head: 0 feet end, 1 top")
right.set_ylabel("share of slices")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Order
#
# Which slice lies above which? Not the file name and not always the instance number tell, but Image Position (Patient),
# projected on the normal of the slices. `find_studies` groups files into studies and puts each in order, feet to head.
# Steps need not be even: most scanners take thin slices through the skull base and thick ones above. A step of 0 is a
# place that was scanned twice.

# %%
studies = find_studies(DATA).studies
truth = read_labels(LABEL_FILE)


def bleeding(study):
    """Return for each slice of a study, feet to head, which of the six labels it has; 0 where it has no label."""
    known = [s.sop_uid in truth.table.index for s in study.slices]
    targets = np.zeros((len(study.slices), len(LABELS)), int)
    targets[known] = truth.targets([s.sop_uid for s, k in zip(study.slices, known, strict=True) if k])
    return targets


KIND = LABELS.index("intraparenchymal")  # the easiest to see
study = max(studies, key=lambda s: int(bleeding(s)[:, KIND].sum()))
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
for other in studies[:8]:
    axes.plot(np.diff(other.positions_mm), drawstyle="steps-mid", color="0.75")
axes.plot(np.diff(study.positions_mm), drawstyle="steps-mid", color="tab:blue")
axes.set_xlabel("slice, feet to head")
axes.set_ylabel("step to the next, mm")
plt.show()
print(len(study.slices), "slices;", int(bleeding(study)[:, -1].sum()), "of them with a haemorrhage")

# %% [markdown]
# ## Hounsfield units and windows
#
# A stored pixel becomes Hounsfield units by the slope and intercept in its file: air is -1000, water 0, brain 20 to 45,
# fresh blood 50 to 90, bone 1000. Brain and blood lie within seventy of these thousands. Shown at once, all of it in
# 256 greys, they look the same; so radiologists, and networks, look through windows.

# %%
bleeds = np.flatnonzero(bleeding(study)[:, KIND])
middle = int(bleeds[len(bleeds) // 2])
hu = read_hounsfield(study.slices[middle])
views = {"all of it": (500, 3000)} | WINDOWS_HU
figure, axes = plt.subplots(
    1, len(views) + 1, figsize=(15, 3), layout="constrained", width_ratios=[*[1] * len(views), 1.5]
)
for ax, (name, (level, width)) in zip(axes, views.items(), strict=False):
    ax.imshow(shown(hu, (level, width)), cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{name}\n{level - width / 2:g} to {level + width / 2:g} HU", fontsize=9)
    ax.axis("off")
axes[-1].hist(hu[(hu > -20) & (hu < 120)], bins=70, color="0.5")
axes[-1].axvspan(50, 90, color="tab:red", alpha=0.15, label="fresh blood")
axes[-1].set_xlabel("HU")
axes[-1].legend(fontsize=8)
plt.show()
print("labels of this slice:", [label for label, has in zip(LABELS, bleeding(study)[middle], strict=True) if has])

# %% [markdown]
# Slice after slice, through the brain window:

# %%
chosen = np.linspace(0, len(study.slices) - 1, 8).round().astype(int)
figure, axes = plt.subplots(1, len(chosen), figsize=(15, 2.2), layout="constrained")
for ax, index in zip(axes, chosen, strict=True):
    ax.imshow(shown(read_hounsfield(study.slices[index]), WINDOWS_HU["brain"]), cmap="gray", vmin=0, vmax=255)
    ax.set_title("bleeds" if bleeding(study)[index, -1] else "", fontsize=9)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## The network of slices
#
# `train_cnn` takes a network that knows photographs and shows it slices, each through several windows. Patients are
# dealt into folds, and for each fold a network learns from the others: so there is for every slice a network that never
# saw its patient, and the figures are made of what that one says. The rows beside `cnn` are what knows less: the
# prevalence alone, and the place in the head alone.

# %%
trained = ich_seq.train_cnn(DATA, LABEL_FILE, OUT / "cnn", config)
print(table(trained.figures))

# %%
figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
axes.imshow(plt.imread(OUT / "cnn" / "curves.png"))
axes.axis("off")
plt.show()

# %% [markdown]
# The brackets are 95 % intervals over patients. With three dozen they are wide, and that is what they are for.
#
# ## The network of sequences
#
# A slice network is shown one slice and forgets it. Yet blood in the slice below makes blood in this one likelier, and
# a bright spot that is in neither neighbour is likelier a mistake. `extract_features` writes down, for each slice, what
# its network saw (the embedding) and said (six logits); `train_rnn` lets a bidirectional GRU read these from feet to
# head and back, and correct the logits. The correction starts at nothing, and how much of it is believed is chosen
# label by label on patients that it did not learn from: where it is no surer than chance, none of it.

# %%
ich_seq.extract_features(DATA, OUT / "features", config, cnn=OUT / "cnn")
sequence = ich_seq.train_rnn(OUT / "features", LABEL_FILE, OUT / "bundle", config)
print(table(sequence.figures))
card = json.loads((OUT / "bundle" / "bundle.json").read_text())
print("\nshare of the GRU, label by label:", dict(zip(LABELS, card["calibration"]["slices"]["share"], strict=True)))
print("what a slice hears of those one, two and three away:", max(card["calibration"]["kernel"]))
gain = sequence.figures["blend"]["difference_to_cnn"]["slice_loss"]
print(f"log loss, blend less cnn: {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]")

# %% [markdown]
# A few dozen patients are too few for a GRU: expect shares of 0 here, and on the 62 patients of CT-ICH too; what the
# blend then gains, if anything, is the kernel's, three weights with which slices hear their neighbours. With a
# thousand studies it takes a good part of the loss away, and shuffling the slices takes a part of that back: order does
# tell something. The page *Why a GRU* has the figures.
#
# ## New studies, and the submission
#
# `predict` needs no labels. It writes a report to look at, a table of studies, one of slices, and Kaggle's form.

# %%
ich_seq.predict(NEW, OUT / "bundle", OUT / "results")
with (OUT / "results" / "studies.csv").open(newline="") as file:
    for row in list(csv.DictReader(file))[:5]:
        print(row["study_uid"], *(f"{label} {float(row[label]):.3f}" for label in LABELS), sep="  ")
print("\nsubmission.csv")
print(*(OUT / "results" / "submission.csv").read_text().splitlines()[:7], sep="\n")

# %% [markdown]
# Of the likeliest study, what the slice network, the GRU and their blend say along the head:

# %%
with (OUT / "results" / "slices.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
likeliest = max(rows, key=lambda row: float(row["any"]))["study_uid"]
rows = [row for row in rows if row["study_uid"] == likeliest]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for name, column in (("cnn", "cnn_any"), ("GRU", "rnn_any"), ("blend", "any")):
    axes.plot([float(row["position_mm"]) for row in rows], [float(row[column]) for row in rows], ".-", label=name)
axes.set_xlabel("position, mm, feet to head")
axes.set_ylabel("probability of any haemorrhage")
axes.set_ylim(0, 1)
axes.legend()
plt.show()

# %% [markdown]
# ## How good is it?
#
# On studies that no stage has seen, with their labels, `evaluate` says so: every usual figure, with its interval.

# %%
if NEW_LABEL_FILE is not None:
    judged = ich_seq.evaluate(OUT / "results", NEW_LABEL_FILE, OUT / "evaluation", bundle=OUT / "bundle").evaluation
    for name, quality in judged["slices"].items():
        loss, area = quality["weighted_log_loss"], quality["labels"]["any"]["auroc"]
        told = "no figure" if area is None else f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]"
        print(f"{name:10} loss {loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}]   AUC(any) {told}")

# %% [markdown]
# What is left to look at: `exploration/exploration.html`, `results/report.html`, `evaluation/evaluation.html` and the
# model card `evaluation/card.html`, all below `guide-results`. And then the real data: the tutorial goes on there.

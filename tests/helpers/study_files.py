"""Writes run folders of simulated studies with known answers."""

import hashlib
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from twostage_jax.report import figures, study_table
from twostage_jax.report.analysis import analyse
from twostage_jax.report.artefacts import gather
from twostage_jax.report.parts import walk
from twostage_jax.report.sections import build
from twostage_jax.report.tables import Table
from twostage_jax.stats import metrics

ARMS = {
    "scratch": ["target"],
    "natural": ["natural", "target"],
    "texture": ["texture", "target"],
    "two_stage": ["natural", "texture", "target"],
}
HOSTILE = (
    "<img src=x onerror=window.attacked=true>",
    "=HYPERLINK(a)|b",
    "50 % & $x_1$ \\input{y}",
)
CLASSES = ("healthy", "ground glass", "nodular")
# Settings of the data of every stage run.
DATA = {
    "source": "phantoms",
    "normalise": "fixed",
    "window": [-600, 1500],
    "options": {},
}


def config(arms=ARMS, seeds=(0, 1, 2), fractions=(1.0,), folds=0, **target):
    """Short settings as stored in `results.json`."""
    stage = {
        "data": {"source": "phantoms", "normalise": "fixed", "options": {}},
        "optim": {"learning_rate": 0.002},
        "train": {"steps": 400, "save_every": 100},
    }
    return {
        "name": "made study",
        "model": {"name": "caffenet_small"},
        "stages": {
            "natural": stage,
            "texture": stage,
            "target": {**stage, **target},
        },
        "arms": dict(arms),
        "study": {
            "arms": [],
            "seeds": list(seeds),
            "fractions": list(fractions),
            "draw": "group",
            "folds": folds,
            "split_seed": 0,
        },
    }


def write_study(
    folder,
    chances,
    *,
    seeds=(0, 1, 2),
    fractions=(1.0,),
    folds=0,
    patients=16,
    patches=30,
    classes=CLASSES,
    arms=ARMS,
    rich=False,
    redrawn=False,
    primary=None,
    baselines=None,
    **target,
):
    """Writes a run folder and returns it.

    Args:
      folder: Output folder.
      chances: Arm -> probability of a correct prediction at fraction 1; it
        falls by a quarter of the arm's errors for each halving.
      patients: Test patients over all folds, or None for a set without groups.
      patches: Number of patches per patient.
      redrawn: Whether folds are redrawn for each seed.
      primary: Primary endpoint in the settings, if any.
      baselines: Baseline -> chance, likewise.
      rich: Whether stages, examples, mistakes and an explanation are written too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arms = {name: chain for name, chain in arms.items() if name in chances}
    settings = config(arms, seeds, fractions, folds, **target)
    if primary:
        settings["study"]["primary"] = list(primary)
    rows, others = [], []
    for seed in seeds:
        for fraction in fractions:
            for fold in range(max(folds, 1)):
                shape = folds, redrawn, patients, patches, classes
                lost = 0.08 * np.log2(1 / fraction)
                for arm in arms:
                    place = (arm, seed, fraction, fold)
                    rows.append(_row(folder, place, chances[arm] - lost, *shape))
                for name, chance in (baselines or {}).items():
                    place = (name, seed, fraction, fold)
                    others.append(_row(folder, place, chance - lost, *shape))
    if rich:
        _stages(folder, rows, arms, classes)
        _images(folder, rows, classes)
        write_explanation(folder / "explain")
    write_results(folder, settings, rows, baselines=others)
    return folder


def reported(study, resamples=200):
    """Returns the report of a study, or of its folder, and the analysis behind it."""
    if not isinstance(study, study_table.Study):
        study = study_table.load([study])
    found = analyse(study, resamples)
    return build(study, found, gather(study)), found


def parts_of(report):
    """Returns all parts of a report, including folded ones."""
    return walk([part for section in report.sections for part in section.parts])


def tables_of(report):
    """Returns the tables of a report by name."""
    return {part.name: part for part in parts_of(report) if isinstance(part, Table)}


def edit_lineages(folder, pattern, change):
    """Changes the lineages of stage runs: `change` takes each as read."""
    for path in folder.glob(f"stages/{pattern}/lineage.json"):
        lineage = json.loads(path.read_text())
        change(lineage)
        path.write_text(json.dumps(lineage))


def write_explanation(folder):
    """Writes output of `explain`: hostile words, and two figures of one letter."""
    folder.mkdir()
    names = ("first_layer", "saliency")
    for name in names:
        figure = Figure(figsize=(1, 1))
        figure.text(0.5, 0.5, "a")
        figures.save(figure, folder / "figures" / name)
    explained = {
        "words": [f"Edges, then texture: {HOSTILE[0]}."],
        "figures": {name: f"figures/{name}" for name in names},
        "left_out": [f"Arm {HOSTILE[1]}"],
    }
    (folder / "explain.json").write_text(json.dumps(explained))


def write_results(folder, settings, rows, **more):
    results = {"schema": 1, "config": settings, "rows": rows, **more}
    (folder / "results.json").write_text(json.dumps(results))


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


def _row(folder, place, chance, folds, redrawn, patients, patches, classes):
    arm, seed, fraction, fold = place
    arrays = _predicted(place, chance, folds, redrawn, patients, patches, classes)
    name = f"predictions/{arm}-seed{seed}-fraction{fraction:g}-fold{fold}.npz"
    (folder / "predictions").mkdir(exist_ok=True)
    # Folds of one study train on its own patients.
    others = patients - patients // folds if patients and folds and redrawn else 20
    trained = int(others * fraction) or 1
    np.savez_compressed(folder / name, **arrays)
    return {
        "arm": arm,
        "seed": seed,
        "fraction": fraction,
        "fold": fold,
        "n_train": int(1600 * fraction),
        "n_test": len(arrays["ids"]),
        "groups": {"train": trained, "validation": 4, "test": 16} if patients else None,
        "metrics": metrics.scores(arrays["labels"], arrays["probabilities"]),
        "predictions": name,
        "stage_runs": [],
    }


def _predicted(place, chance, folds, redrawn, patients, patches, classes):
    """Returns the arrays of one row: patients differ, and some classes are harder."""
    arm, seed, fraction, fold = place
    data = np.random.default_rng(1)
    count = (patients or 16) * patches
    patient = np.repeat(np.arange(patients or 16), patches)
    labels = data.permuted(np.arange(count) % len(classes))
    harder = data.normal(0, 0.05, patients or 16)[patient]
    shared = np.arange(patients or 16)
    if redrawn:
        shared = np.random.default_rng(seed).permutation(shared)
    keep = shared[patient] % max(folds, 1) == fold
    names = [*ARMS, "majority", "mean_grey", "descriptors"]
    key = [names.index(arm), seed, int(1000 * fraction)]
    random = np.random.default_rng(key)
    luck = random.normal(0, 0.01)
    right = random.random(count) < np.clip(chance + harder + luck, 0.02, 0.98)
    wrong = (labels + random.integers(1, len(classes), count)) % len(classes)
    logits = random.normal(0, 0.5, (count, len(classes)))
    logits[np.arange(count), np.where(right, labels, wrong)] += 3
    said = np.where(right, labels, wrong)
    top = logits.max(1)
    logits[np.arange(count), said] = top + 0.1
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return {
        "ids": np.array([f"patch{i:05d}" for i in range(count)])[keep],
        "groups": np.array([f"p{i:02d}" if patients else "" for i in patient])[keep],
        "labels": labels[keep].astype(np.int32),
        "probabilities": probabilities[keep].astype(np.float32),
        "class_names": np.array(classes),
    }


def _stages(folder, rows, arms, classes):
    """Adds stage runs, shared as in the program, and the choices of tuning."""
    for row in rows:
        chain = []
        for depth, stage in enumerate(arms[row["arm"]], 1):
            place = (row["seed"], *((row["fraction"], row["fold"]) if stage == "target"
                                    else (1.0, 0)))  # fmt: skip
            key = repr((arms[row["arm"]][:depth], place)).encode()
            chain.append(f"{stage}-{hashlib.sha256(key).hexdigest()[:12]}")
            _stage(folder / "stages" / chain[-1], stage, chain, place, row, classes)
        row["stage_runs"] = chain
        row["tried"] = [
            {
                "settings": {"optim.learning_rate": rate},
                "validation": {"loss": 0.5, "balanced_accuracy": 0.8 + rate},
                "stage_run": chain[-1],
                "chosen": rate == 0.002,
            }
            for rate in (0.001, 0.002)
        ]
        (folder / "rows").mkdir(exist_ok=True)
        path = folder / "rows" / Path(row["predictions"]).with_suffix(".json").name
        path.write_text(json.dumps(row))


def _stage(folder, stage, chain, place, row, classes):
    folder.mkdir(parents=True, exist_ok=True)
    seed, fraction, fold = place
    history = [
        {
            "step": 50 * i,
            "loss": 1 / i + 0.02 * seed,
            "validation_loss": 1.1 / i + 0.02 * seed,
            "validation_balanced_accuracy": row["metrics"]["accuracy"] - 0.3 / i,
        }
        for i in range(1, 9)
    ]
    lineage = {
        "stage": stage,
        "chain": list(chain),
        "hash": chain[-1].rsplit("-", 1)[1] + 52 * "0",
        "seed": seed,
        "fraction": fraction,
        "fold": fold,
        "settings": {"train": {"steps": 400}, "data": DATA},
        "model": {"name": "caffenet_small", "channels": 1, "image_size": 32},
        "data": {
            "name": stage,
            "fingerprint": "ab" * 32,
            "class_names": list(classes),
            "examples": {"train": 1600, "validation": 200, "test": 480},
            "groups": {"train": 20, "validation": 4, "test": 16},
            "units": "hu",
            "mean": [0.5],
            "deviation": [0.25],
        },
        "history": history,
        "scores": row["metrics"],
        "versions": {"jax": "0.10.2", "devices": "1 x cpu"},
    }
    (folder / "lineage.json").write_text(json.dumps(lineage))
    if len(chain) > 1:
        arrays = [("params/conv1/kernel", "copy", ".*"), ("params/head/kernel", "init",
                                                         "params/head/.*")]  # fmt: skip
        report = [
            {
                "path": path,
                "action": action,
                "rule": rule,
                "source_shape": [5, 5, 1, 48],
                "target_shape": [5, 5, 1, 48],
                "source_norm": 9.7,
                "fresh_norm": 9.5,
                "norm": 9.7 if action == "copy" else 9.5,
            }
            for path, action, rule in arrays
        ]
        text = {"rows": report, "unused": ["params/head/kernel"], "notes": []}
        (folder / "transfer.json").write_text(json.dumps(text))


def _images(folder, rows, classes):
    """Adds examples of each stage, and the mistakes of the first seed's rows."""
    (folder / "examples").mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    for stage in ("natural", "texture", "target"):
        labels = np.repeat(np.arange(len(classes)), 6)
        images = random.integers(0, 256, (len(labels), 32, 32, 1)).astype(np.uint8)
        path = folder / "examples" / f"{stage}.npz"
        np.savez(path, images=images, labels=labels, class_names=np.array(classes))
    parts = []
    for row in rows:
        if row["seed"] == rows[0]["seed"] and row["fraction"] == 1 and row["fold"] == 0:
            saved = np.load(folder / row["predictions"])
            wrong = saved["probabilities"].argmax(1) != saved["labels"]
            chosen = np.flatnonzero(wrong)[:6]
            parts.append(
                {name: saved[name][chosen]
                 for name in ("ids", "groups", "labels", "probabilities")}
                | {"arm": np.full(len(chosen), row["arm"])}
            )  # fmt: skip
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    shape = (len(joined["ids"]), 32, 32, 1)
    images = random.integers(0, 256, shape).astype(np.uint8)
    np.savez(folder / "examples" / "mistakes.npz", images=images, **joined)

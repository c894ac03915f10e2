"""Tests whether the distance to the training images detects images that differ.

    python experiments/unseen.py --phantom_run=runs/two_stage --real_run=runs/covid \\
        --data=DATA --out=experiments/unseen.md

takes a model trained on phantoms (`configs/two_stage.py`) and one trained on patches of
real CT (`experiments/covid.py`), and measures which fraction of the windows of other images
lies beyond the threshold that each model exports (`twostage_jax/train/novelty.py`): patches
of its own test patients, new phantom patients, real CT in DATA/ct_dicom, the same real CT
shown with another window, soft tissue, and generated textures. Other features and distances
are measured in the same way, and so is how well a classifier that is shown both kinds of
windows distinguishes them, which bounds what any distance can do. Writes the page, and the
numbers next to it as JSON. Minutes on a CPU.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pages
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twostage_jax import cli, models
from twostage_jax.config import DataConfig
from twostage_jax.ct import patches
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.phantom import phantom_slices
from twostage_jax.ct.series import find_series, read_volume
from twostage_jax.data import sources
from twostage_jax.data.store import prepare
from twostage_jax.data.synthetic import textures
from twostage_jax.errors import UserError
from twostage_jax.maps import classify
from twostage_jax.maps.run import from_feet
from twostage_jax.study import artifacts
from twostage_jax.train import checkpoint, novelty, steps
from twostage_jax.train.augment import centre_crop, normalise, to_unit

# Seed of phantom patients, different from that of the training.
SEED, PATIENTS, SECTIONS = 77, 6, 2
STRIDE = 8
# Smallest fraction of lung in windows that show only lung.
LUNG_ALONE = 0.95
# Range of soft tissue, HU, and its smallest fraction in windows of soft tissue.
SOFT_HU, BATCH = (-50, 200), 256
# Features to compare with those of `models.descriptor`, which joins them: the pooled
# activations of early, middle and late convolutions, and the input of the head.
TAPS = ("pool1", "relu3", "pool5", "relu7")
OURS, PHANTOMS, REAL = "as exported", "new phantom patients", "real CT"
WINDOWED = f"{REAL}, all windows, shown with the HU window 40,400"

TEXT = """# Images that differ from the training images

    {command} \\
        --out=experiments/unseen.md

`predict` hatches lung whose windows differ from the training images: those whose nearest
training image, in standardised features, is further away than for 99 % of the patches
of held-out training patients (`twostage_jax/train/novelty.py`). Two models were
measured:

- of phantoms: the two-stage arm of the default job. Unlike: {phantom}.
- of real CT: trained on patches of `covid_ct` (17 patients; `experiments/covid.py`, arm
  `scratch`, seed 0). Unlike: {real}.

Both networks had the dense head. Real CT is `ct_dicom`, 20 slices of 10 patients of
another collection, windows as in `predict`; for the second model all images are
resampled to 1.4 mm and shown as its slices were (HU window -300,1950). *Lung alone*:
windows with at least 95 % of lung. All numbers:
[unseen.json](unseen.json).

**The threshold nearly holds for new patients, and a wrong HU window is detected in
{wrong} % of the lung. Real patients are not distinguished from phantoms:** per window,
real lung lies as near to the training phantoms as new phantoms do. So `predict` does
not rely on the distance there. A data set records whether its images are synthetic, and
a model trained on synthetic images refuses every series that is not marked as
synthetic.

Windows that differ from the training images, in %:

| images | model of phantoms | model of real CT |
|---|--:|--:|
{rows}

The nominal value for patches of test patients is 1 %. Whole lungs have more, because
windows at the chest wall differ from all training patches. By patient of the real CT, the
model of phantoms marks {spread} % (least, median, most).

Distances in these features cannot do much better: even a linear classifier
that is *shown* windows of both kinds (lung alone, patients held out) confuses many
single windows of phantoms and of real CT, with an AUC of {auc} in the features of the
model of phantoms. Soft tissue is not detected where the training images contain
consolidation, which looks the same. The model of real CT, whose threshold rests on 6
patients, is at {own} instead of 1 % on its own test patients: with so few, a threshold
is itself uncertain.

## Other features and distances

For the model of phantoms, in %, with thresholds by the same cross-validation over patients,
with the validation patients among them. *Mahalanobis*: from the nearest class mean, one
shrunk covariance (Lee et al. 2018). *Of length 1*: features scaled to length 1, as in
Sun et al. 2022. The choice was made on these same images, so the chosen distance may do
somewhat worse on others.

| features and distance | {shown} |
|---|{lines}|
{others}
"""


class Windows(NamedTuple):
    """Windows of slices: `[N, size, size, 1]` int16, patients, fractions of lung."""

    images: np.ndarray
    patients: np.ndarray
    lung: np.ndarray


class Model:
    """Stage run with its training images and its test images."""

    def __init__(self, folder: Path, data_dir: Path, window: tuple[float, ...] | None):
        self.run = run = artifacts.find(folder)
        self.window = window or run.window
        lineage = json.loads((run.folder / "lineage.json").read_text())
        settings = lineage["settings"]["data"]
        settings["window"] = tuple(settings["window"])
        self.dataset = sources.load(DataConfig(**settings), run.model, data_dir)
        with np.load(run.folder / "predictions.npz", allow_pickle=False) as saved:
            tested = saved["ids"]
        self.test = np.flatnonzero(np.isin(self.dataset.ids, tested))
        self.reference = novelty.load(run.folder, run.hash)
        self.module = steps.build_model(run.model, len(run.class_names), None)
        self.variables = checkpoint.load_variables(run.folder / "variables")

    def features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the last features and the pooled taps, by name, `[N, D]`."""
        parts = []
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            rest = [(0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)]
            found = self._program(np.pad(part, rest))
            parts.append({k: np.asarray(v)[: len(part)] for k, v in found.items()})
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    @functools.cached_property
    def _program(self) -> Callable:
        run = self.run
        scale = np.asarray(run.mean, np.float32), np.asarray(run.deviation, np.float32)

        def program(images: jax.Array) -> dict[str, jax.Array]:
            unit = to_unit(images, self.window, run.model.channels)
            unit = centre_crop(unit, run.model.image_size)
            unit = normalise(unit, run.normalise, *scale)
            _, taps = self.module.apply(self.variables, unit, train=False)
            found = {name: taps[name] for name in TAPS}
            pooled = {k: v.mean((1, 2)) if v.ndim == 4 else v for k, v in found.items()}
            return {OURS: models.descriptor(taps), **pooled}

        return jax.jit(program)


def windows_of(
    hu: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float],
    size: int,
    to_mm: float | None,
    patient: str,
) -> Windows:
    """Returns the windows of slices `[Z, H, W]` that `predict` would classify."""
    grid = classify._grid(hu.shape[1:], spacing, size, classify.How(STRIDE, (), to_mm))
    found = [], []
    for z in np.flatnonzero(mask.any((1, 2))):
        slab, used = classify._slab(hu[z : z + 1], mask[z : z + 1], grid, size)
        inside = np.zeros(slab.shape[1:], bool)
        resampled = patches.resample_mask(mask[z], grid.shape)
        inside[: grid.shape[0], : grid.shape[1]] = resampled
        shares = classify.fractions_inside(inside, grid.rows, grid.columns, size)
        for r, c in np.argwhere(used[0]):
            rows = slice(grid.rows[r], grid.rows[r] + size)
            columns = slice(grid.columns[c], grid.columns[c] + size)
            found[0].append(slab[0, rows, columns, None])
            found[1].append(shares[r, c])
    images = np.array(found[0], np.int16).reshape(-1, size, size, 1)
    return Windows(images, np.full(len(images), patient), np.array(found[1]))


def joined(parts: list[Windows]) -> Windows:
    """Returns the windows of several patients."""
    return Windows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def new_phantoms(size: int, to_mm: float | None) -> Windows:
    """Returns windows of phantom patients outside the training set."""
    parts = []
    for patient in range(PATIENTS):
        drawn = phantom_slices(patient, seed=SEED, slices=SECTIONS)
        spacing = (drawn.spacing, drawn.spacing)
        found = windows_of(drawn.hu, drawn.lungs, spacing, size, to_mm, str(patient))
        parts.append(found)
    return joined(parts)


def real(folder: Path, size: int, to_mm: float | None) -> tuple[Windows, Windows]:
    """Returns windows of the lungs of real CT, and of its soft tissue."""
    lungs, soft = [], []
    for series in find_series(folder.absolute(), go_on=True)[0]:
        series = from_feet(series)
        hu, spacing = read_volume(series), series.headers[0].spacing
        found = lung_mask(hu, (series.step, *spacing))
        tissue = (hu > SOFT_HU[0]) & (hu < SOFT_HU[1]) & ~found
        for masks, kept in ((found, lungs), (tissue, soft)):
            kept.append(windows_of(hu, masks, spacing, size, to_mm, series.patient))
    soft = joined(soft)
    return joined(lungs), Windows(*(array[soft.lung > LUNG_ALONE] for array in soft))


def deep(
    known: np.ndarray, groups: np.ndarray, k: int, *, unit: bool
) -> tuple[float, Callable]:
    """Returns the threshold of distances to the k-th neighbour, and these distances.

    Features are scaled to length 1 (`unit`), or standardised.
    """
    mean, scale = known.mean(0), known.std(0) + novelty.FLOOR * known.std() + 1e-12

    def scaled(features: np.ndarray) -> np.ndarray:
        if not unit:
            return (features - mean) / scale
        length = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(length, 1e-12)

    points = scaled(known)

    def distance(asked: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        squares = novelty.squared_distances(scaled(asked), points)
        if own is not None:
            squares[own[:, None] == groups] = np.inf
        return np.sqrt(np.partition(squares, k - 1, axis=1)[:, k - 1])

    return np.quantile(distance(known, groups), novelty.QUANTILE), distance


def mahalanobis(
    known: np.ndarray, groups: np.ndarray, labels: np.ndarray
) -> tuple[float, Callable]:
    """Returns the result of `deep` for the nearest class mean.

    Lee et al. 2018 (arXiv 1807.03888). One covariance for all classes, shrunk as
    Ledoit and Wolf 2004 do.
    """
    scale = known.std(0) + novelty.FLOOR * known.std() + 1e-12

    def fitted(features: np.ndarray, labels: np.ndarray) -> Callable:
        means = np.stack([features[labels == c].mean(0) for c in np.unique(labels)])
        places = np.unique(labels, return_inverse=True)[1]
        spread = (features - means[places]) / scale
        covariance = LedoitWolf(assume_centered=True).fit(spread).covariance_
        whitening = np.linalg.cholesky(np.linalg.inv(covariance)) / scale[:, None]

        def distance(asked: np.ndarray) -> np.ndarray:
            each = [((asked - mean) @ whitening) ** 2 for mean in means]
            return np.sqrt(np.min([one.sum(1) for one in each], axis=0))

        return distance

    held_out = [
        fitted(known[groups != g], labels[groups != g])(known[groups == g])
        for g in np.unique(groups)
    ]
    threshold = np.quantile(np.concatenate(held_out), novelty.QUANTILE)
    return threshold, fitted(known, labels)


def separable(first: Windows, second: Windows, features: list[np.ndarray]) -> float:
    """Returns the AUC with which a linear classifier distinguishes two sets of windows.

    It is computed on windows with lung only, of patients unseen by the classifier.
    """
    rng = np.random.default_rng(0)
    parts = []
    for windows, found in zip((first, second), features, strict=True):
        inside = np.flatnonzero(windows.lung > LUNG_ALONE)
        inside = rng.choice(inside, min(2000, len(inside)), replace=False)
        parts.append((found[inside], windows.patients[inside]))
    kind = np.repeat([0, 1], [len(found) for found, _ in parts])
    patients = np.concatenate(
        [[f"{i} {p}" for p in patients] for i, (_, patients) in enumerate(parts)]
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    score = cross_val_predict(
        model,
        np.concatenate([found for found, _ in parts]),
        kind,
        groups=patients,
        cv=GroupKFold(5),
        method="predict_proba",
    )[:, 1]
    return float(roc_auc_score(kind, score))


def measure(model: Model, data: Path, data_dir: Path, to_mm: float | None) -> dict:
    """Returns the fractions of windows that differ from a model's training images."""
    if model.reference is None:
        raise UserError(f"{model.run.folder}: has no {novelty.FILE}: train it again.")
    size, dataset = model.run.model.image_size, model.dataset
    lungs, soft = real(data / "ct_dicom", size, to_mm)
    phantoms = new_phantoms(size, to_mm)
    features = model.features
    made = prepare(textures.recipe(size=size, samples_per_class=4), data_dir)
    sets = {
        "patches of its own test patients": features(dataset.images[model.test]),
        f"{PHANTOMS}, all windows": features(phantoms.images),
        f"{PHANTOMS}, lung alone": None,
        f"{REAL}, all windows": features(lungs.images),
        f"{REAL}, lung alone": None,
        f"{REAL}, soft tissue": features(soft.images),
        "generated textures": features(made.images),
    }
    for name, windows in ((PHANTOMS, phantoms), (REAL, lungs)):
        whole = sets[f"{name}, all windows"]
        alone = windows.lung > LUNG_ALONE
        sets[f"{name}, lung alone"] = {k: v[alone] for k, v in whole.items()}
    other = Model.__new__(Model)
    other.__dict__ = {**model.__dict__, "window": (40.0, 400.0)}
    other.__dict__.pop("_program", None)
    sets[WINDOWED] = other.features(lungs.images)

    def unlike(found: np.ndarray) -> float:
        parts = np.array_split(found, -(-len(found) // BATCH))
        judged = [novelty.is_unlike(part, *model.reference[:-1]) for part in parts]
        return float(np.concatenate(judged).mean())

    ours = sets["real CT, all windows"][OURS]
    # For other features and distances: all images except those of test patients.
    rest = np.setdiff1d(np.arange(len(dataset)), model.test)
    rest = novelty.chosen(rest)
    known, groups = features(dataset.images[rest]), dataset.groups[rest]
    others, auc = {}, {}
    for tap in (OURS, *TAPS):
        ways = {
            "nearest": deep(known[tap], groups, 1, unit=False),
            "10th nearest": deep(known[tap], groups, 10, unit=False),
            "nearest, of length 1": deep(known[tap], groups, 1, unit=True),
            "Mahalanobis": mahalanobis(known[tap], groups, dataset.labels[rest]),
        }
        for way, (threshold, distance) in ways.items():
            others[f"{tap}, {way}"] = {
                name: float((distance(each[tap]) > threshold).mean())
                for name, each in sets.items()
            }
        both = [sets[f"{name}, all windows"][tap] for name in (PHANTOMS, REAL)]
        auc[tap] = separable(phantoms, lungs, both)
    return {
        "model": model.run.hash,
        "trained_on": model.run.data,
        "reference": str(model.reference),
        "windows": {name: len(each[OURS]) for name, each in sets.items()},
        "unlike": {name: unlike(each[OURS]) for name, each in sets.items()},
        "unlike_by_patient_of_real_ct": [
            unlike(ours[lungs.patients == p]) for p in np.unique(lungs.patients)
        ],
        "other_distances": others,
        "auc_phantom_or_real": auc,
    }


def page(command: str, found: dict[str, dict[str, Any]]) -> str:
    """Returns the page of the results of `measure`, by model."""
    phantom, real_ct = found["phantoms"], found["real"]
    rows = [
        f"| {name} | {percent(phantom['unlike'][name])} | "
        f"{percent(real_ct['unlike'][name])} |"
        for name in phantom["unlike"]
    ]
    shown = (
        "patches of its own test patients",
        f"{PHANTOMS}, lung alone",
        f"{REAL}, lung alone",
        WINDOWED,
        "generated textures",
    )
    others = [
        f"| {name} | {' | '.join(percent(values[one]) for one in shown)} |"
        for name, values in phantom["other_distances"].items()
    ]
    return TEXT.format(
        command=command,
        phantom=phantom["reference"],
        real=real_ct["reference"],
        rows="\n".join(rows),
        others="\n".join(others),
        shown=" | ".join(shown),
        wrong=f"{percent(phantom['unlike'][WINDOWED])} or "
        f"{percent(real_ct['unlike'][WINDOWED])}",
        own=percent(real_ct["unlike"]["patches of its own test patients"]),
        lines="|".join(["--:"] * len(shown)),
        auc=", ".join(
            f"{value:.2f} ({tap})"
            for tap, value in phantom["auc_phantom_or_real"].items()
        ),
        spread=", ".join(
            percent(np.quantile(phantom["unlike_by_patient_of_real_ct"], q))
            for q in (0, 0.5, 1)
        ),
    )


def percent(share: float) -> str:
    """Returns a fraction in per cent, with one decimal below ten."""
    return f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--phantom_run", type=Path, required=True)
    parser.add_argument("--real_run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds ct_dicom/")
    parser.add_argument("--data_dir", type=Path, default=None, help="prepared data")
    parser.add_argument("--out", type=Path, required=True, help="the page, .md")
    flags = parser.parse_args()
    data_dir = flags.data_dir or cli.cache_dir() / "data"
    models_of = {
        "phantoms": (Model(flags.phantom_run, data_dir, None), None),
        # The window of the slices of covid_ct, whose pixels are 1.4 mm.
        "real": (Model(flags.real_run, data_dir, (-300.0, 1950.0)), 1.4),
    }
    found = {
        name: measure(model, flags.data, data_dir, to_mm)
        for name, (model, to_mm) in models_of.items()
    }
    command = (
        "python experiments/unseen.py --phantom_run=RUN --real_run=RUN --data=DATA"
    )
    pages.leave(flags.out, found, page(command, found))


if __name__ == "__main__":
    main()

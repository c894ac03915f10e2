"""The baselines of a study, on the splits of its arms.

    majority           the class frequencies of the training examples
    mean_grey          the mean of each channel
    descriptors        texture descriptors (see `descriptors`)
    frozen_random      moments of the layers of an untrained network
    frozen_STAGES      the same for the network after each chain of source stages

All but the first are followed by the same linear classifier, tuned on training groups.
Validation and test examples are never used for fitting.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage_jax import io, models
from twostage_jax.baselines import descriptors, frozen
from twostage_jax.config import TARGET, ModelConfig, as_json
from twostage_jax.data.dataset import digest
from twostage_jax.stats import metrics
from twostage_jax.study import artifacts, plan
from twostage_jax.study.plan import Row, StageRun, keys, place_of, split_of
from twostage_jax.study.stage import Materials, constants_of
from twostage_jax.train import augment, checkpoint, steps

# Bump when the same splits give different predictions.
VERSION = 3
BATCH = frozen.BATCH
# Maps a patch of mean 0 and standard deviation 1 to the descriptors' range [0, 1].
DEVIATIONS = 3.0
FROZEN = "frozen"


class Baseline(NamedTuple):
    """A baseline at one position of a study.

    Attributes:
      name: Name, such as 'descriptors' or 'frozen_natural'.
      run: Target stage run of an arm at this position, which has the same examples.
      source: Stage run whose network is frozen; None for a random or no network.
    """

    name: str
    run: StageRun
    source: StageRun | None

    @property
    def file_name(self) -> str:
        return plan.file_name(f"baseline-{self.name}", self.run)


def baselines(wanted: tuple[str, ...], rows: list[Row]) -> list[Baseline]:
    """Returns the baselines at each position of a study's rows, in that order.

    Args:
      wanted: Names from `config.study.baselines`; 'frozen' stands for one baseline per
        chain of source stages.
      rows: Rows of the study.
    """
    found: dict[str, Baseline] = {}
    for row in rows:
        run = row.candidates[0]
        for name in wanted:
            source = run.parent if name == FROZEN else None
            if name == FROZEN:
                stages = [one.stage for one in source.chain] if source else ["random"]
                name = "_".join([FROZEN, *stages])
            one = Baseline(name, run, source)
            found.setdefault(one.file_name, one)
    return list(found.values())


def run_missing(materials: Materials, rows: list[Row]) -> None:
    """Computes the missing baselines of these rows.

    Results and classifiers are stored in `baselines/`, predictions with those of the arms.
    """
    config = materials.config
    wanted = baselines(config.study.baselines, rows)
    missing = [one for one in wanted if _read(materials, one) is None]
    if missing:
        done = len(wanted) - len(missing)
        print(f"{len(wanted)} baselines, {done} done.", flush=True)
    stage, dataset = config.stages[TARGET], materials.datasets[TARGET]
    view = View(
        config.network(TARGET), stage.data.normalise, stage.data.window,
        stage.augment.average,
    )  # fmt: skip
    features = Features(dataset.images, dataset.num_classes, view)
    # Baselines of one source are consecutive, so its features are computed once.
    for one in sorted(missing, key=lambda one: (one.name, one.run.seed)):
        _make(materials, one, features)


def results(materials: Materials, rows: list[Row]) -> list[dict[str, Any]]:
    """Returns the available baselines of these rows, each like a row of an arm."""
    wanted = baselines(materials.config.study.baselines, rows)
    found = [_read(materials, one) for one in wanted]
    return [one for one in found if one is not None]


def predict(
    workdir: Path, row: Mapping[str, Any], features: "Features"
) -> np.ndarray | None:
    """Returns class probabilities `[N, K]` of the images of `features` by a baseline.

    None if an earlier version, which did not keep the classifier, fitted it.

    Args:
      workdir: Workdir of a finished study.
      row: Row of the baseline in its results.
      features: Features of the images.
    """
    from twostage_jax.baselines import linear

    path = model_path(workdir, row["predictions"])
    if not path.is_file():
        return None
    saved = io.read_arrays(path)
    network = None
    if row["arm"].startswith(FROZEN):
        source = str(saved["source"])
        folder = workdir / "stages" / source / "variables" if source else None
        network = Frozen(folder, row["seed"], saved["mean"], saved["deviation"])
    fitted = linear.Fitted(
        str(saved["layer"]), None, saved["weights"], saved["bias"], saved["classes"]
    )
    found = features.of(row["arm"], network)
    return fitted.probabilities(found, features.num_classes)


def model_path(workdir: Path, predictions: str) -> Path:
    """Returns the file of a baseline's classifier, given that of its predictions."""
    return workdir / "baselines" / Path(predictions).name


class View(NamedTuple):
    """How the target stage sees an image.

    Attributes:
      model: Settings of the network.
      normalise, window: Scaling of the images, see `train.augment`.
      whole: Whether it sees the whole image, by the mean over windows that cover it,
        instead of the centre.
    """

    model: ModelConfig
    normalise: str
    window: tuple[float, ...]
    whole: bool


class Frozen(NamedTuple):
    """A network that is not trained on the target.

    Attributes:
      folder: Folder of its variables; None for random ones.
      seed: Seed of its dense layers, and of random variables.
      mean, deviation: Scaling of the images, `[C]`.
    """

    folder: Path | None
    seed: int
    mean: np.ndarray
    deviation: np.ndarray


class Features:
    """Features of a set of images, computed on first use.

    Args:
      images: `[N, H, W, C]`, in memory or on disk.
      num_classes: Number of classes of the target.
      view: How the target stage sees them.
    """

    def __init__(self, images: Any, num_classes: int, view: View) -> None:
        self.num_classes = num_classes
        self._images, self._view = images, view
        self._last: tuple[str, dict[str, np.ndarray]] = "", {}

    def of(self, name: str, network: Frozen | None = None) -> dict[str, np.ndarray]:
        """Returns the features `[N, F]` of a baseline by name."""
        if name == "majority":
            return {"none": np.zeros((len(self._images), 1))}
        if name == "mean_grey":
            found = [images.mean((1, 2)) for images in self._grey()]
            return {"mean": np.concatenate(found)}
        if name == "descriptors":
            return self._descriptors
        key = digest(str(network.folder), *network[1:])
        if self._last[0] != key:  # The features of all seeds do not fit into memory.
            self._last = key, self._frozen(network)
        return self._last[1]

    def _unit(self) -> Iterator[np.ndarray]:
        """Yields batches of what an arm sees, in [0, 1], `[n, H, W, C]`."""
        model = self._view.model
        for first in range(0, len(self._images), BATCH):
            indices = np.arange(first, min(first + BATCH, len(self._images)))
            images = augment.to_unit(
                self._images[indices], self._view.window, model.channels
            )
            if not self._view.whole:
                images = augment.centre_crop(images, model.image_size)
            yield np.asarray(images)

    def _grey(self) -> Iterator[np.ndarray]:
        for images in self._unit():
            if self._view.normalise == "patch":
                patches = np.asarray(augment.normalise(images, "patch", 0.0, 1.0))
                images = np.clip(patches / (2 * DEVIATIONS) + 0.5, 0, 1)
            yield images

    @functools.cached_property
    def _descriptors(self) -> dict[str, np.ndarray]:
        found = [descriptors.describe(images) for images in self._grey()]
        return {"descriptors": np.concatenate(found)}

    def _frozen(self, network: Frozen) -> dict[str, np.ndarray]:
        model = self._view.model
        module = steps.build_model(model, self.num_classes, None)
        init_key, _ = keys(network.seed, TARGET)
        fresh = models.init(module, init_key, model.image_size, model.channels)
        variables = fresh
        if network.folder:
            variables = checkpoint.load_variables(network.folder)
        return frozen.features(
            module, variables, fresh, self._unit(), model.image_size,
            self._view.normalise, network.mean, network.deviation,
        )  # fmt: skip


def _make(materials: Materials, one: Baseline, features: Features) -> None:
    # Imported only for fitting: scikit-learn loads slowly.
    from twostage_jax.baselines import linear

    dataset = materials.datasets[TARGET]
    splits = split_of(materials.config, dataset, one.run)
    network = None
    if one.name.startswith(FROZEN):
        constants = constants_of(
            materials.config.stages[TARGET], materials.config.model.channels, dataset,
            splits.train, plan.scale(materials.config, materials.datasets, one.run),
        )  # fmt: skip
        folder = materials.folder(one.source) / "variables" if one.source else None
        network = Frozen(folder, one.run.seed, constants.mean, constants.deviation)
    found = features.of(one.name, network)
    train = {name: values[splits.train] for name, values in found.items()}
    labels = dataset.labels[splits.train]
    groups = None if dataset.groups is None else dataset.groups[splits.train]
    if one.name == "majority":
        fitted = linear.frequencies(train, labels)
    else:
        fitted = linear.fit(train, labels, groups)
    test = {fitted.layer: found[fitted.layer][splits.test]}
    probabilities = fitted.probabilities(test, dataset.num_classes)
    predictions = Path("predictions") / f"{one.file_name}.npz"
    artifacts.save_predictions(
        materials.workdir / predictions, dataset, splits.test, probabilities
    )
    io.write_arrays(
        model_path(materials.workdir, predictions.name),
        layer=np.array(fitted.layer),
        weights=fitted.weights,
        bias=fitted.bias,
        classes=fitted.classes,
        source=np.array(one.source.folder_name if one.source else ""),
        mean=network.mean if network else np.zeros(0),
        deviation=network.deviation if network else np.zeros(0),
    )
    io.write_json(
        _path(materials, one),
        {
            "key": _key(materials, one),
            "arm": one.name,
            "seed": one.run.seed,
            "fraction": one.run.fraction,
            "fold": one.run.fold,
            "n_train": len(splits.train),
            "n_test": len(splits.test),
            "groups": artifacts.group_counts(dataset, splits),
            "metrics": metrics.scores(dataset.labels[splits.test], probabilities),
            "predictions": str(predictions),
            "chosen": {"layer": fitted.layer, "C": fitted.strength},
        },
    )


def _path(materials: Materials, one: Baseline) -> Path:
    return materials.workdir / "baselines" / f"{one.file_name}.json"


def _key(materials: Materials, one: Baseline) -> str:
    """Returns a digest of everything that determines a baseline's predictions."""
    config, dataset = materials.config, materials.datasets[TARGET]
    data = as_json(config.stages[TARGET].data)
    del data["options"], data["image_size"]  # That of the network counts.
    scaled = data["normalise"] == "weights" and one.name.startswith(FROZEN)
    return digest(
        VERSION, plan.RESULT_VERSION,  # A random network may be another one.
        one.name, data, as_json(config.network(TARGET)), dataset.fingerprint,
        place_of(config, one.run), one.source.hash if one.source else "",
        config.stages[TARGET].augment.average,
        *(plan.scale(config, materials.datasets, one.run) if scaled else ()),
    )  # fmt: skip


def _read(materials: Materials, one: Baseline) -> dict[str, Any] | None:
    """Returns the results of a baseline; None if missing or outdated."""
    try:
        found = json.loads(_path(materials, one).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if found["key"] == _key(materials, one) else None

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage_jax import io, models
from twostage_jax.baselines import descriptors, frozen
from twostage_jax.config import TARGET, as_json
from twostage_jax.data.dataset import digest
from twostage_jax.stats import metrics
from twostage_jax.study import artifacts, plan
from twostage_jax.study.plan import Row, StageRun, keys, place_of, split_of
from twostage_jax.study.stage import Materials, constants_of
from twostage_jax.train import augment, checkpoint, steps

# Bump when the same splits give different predictions.
VERSION = 2
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

    Results are stored in `baselines/`, predictions with those of the arms.
    """
    wanted = baselines(materials.config.study.baselines, rows)
    missing = [one for one in wanted if _read(materials, one) is None]
    if missing:
        done = len(wanted) - len(missing)
        print(f"{len(wanted)} baselines, {done} done.", flush=True)
    features = Features(materials)
    # Baselines of one source are consecutive, so its features are computed once.
    for one in sorted(missing, key=lambda one: (one.name, one.run.seed)):
        _make(materials, one, features)


def results(materials: Materials, rows: list[Row]) -> list[dict[str, Any]]:
    """Returns the available baselines of these rows, each like a row of an arm."""
    wanted = baselines(materials.config.study.baselines, rows)
    found = [_read(materials, one) for one in wanted]
    return [one for one in found if one is not None]


class Features:
    """Features of all target examples, computed on first use."""

    def __init__(self, materials: Materials) -> None:
        self._materials = materials
        config = materials.config
        self._stage, self._dataset = config.stages[TARGET], materials.datasets[TARGET]
        self._model = config.network(TARGET)
        self._last: tuple[str, dict[str, np.ndarray]] = "", {}

    def of(self, one: Baseline) -> dict[str, np.ndarray]:
        """Returns the features `[N, F]` of a baseline by name."""
        if one.name == "majority":
            return {"none": np.zeros((len(self._dataset), 1))}
        if one.name == "mean_grey":
            found = [images.mean((1, 2)) for images in self._grey()]
            return {"mean": np.concatenate(found)}
        if one.name == "descriptors":
            return self._descriptors
        constants = self._constants(one)
        source = one.source.hash if one.source else f"random-{one.run.seed}"
        key = digest(source, constants.mean, constants.deviation)
        if self._last[0] != key:  # The features of all seeds do not fit into memory.
            self._last = key, self._frozen(one, constants)
        return self._last[1]

    def _unit(self) -> Iterator[np.ndarray]:
        """Yields batches of what an arm sees, in [0, 1], `[n, H, W, C]`.

        This is the whole image if predictions are means over windows that cover it.
        """
        model, data = self._model, self._stage.data
        whole = self._stage.augment.average
        for first in range(0, len(self._dataset), BATCH):
            indices = np.arange(first, min(first + BATCH, len(self._dataset)))
            images = augment.to_unit(
                self._dataset.images[indices], data.window, model.channels
            )
            if not whole:
                images = augment.centre_crop(images, model.image_size)
            yield np.asarray(images)

    def _grey(self) -> Iterator[np.ndarray]:
        for images in self._unit():
            if self._stage.data.normalise == "patch":
                patches = np.asarray(augment.normalise(images, "patch", 0.0, 1.0))
                images = np.clip(patches / (2 * DEVIATIONS) + 0.5, 0, 1)
            yield images

    @functools.cached_property
    def _descriptors(self) -> dict[str, np.ndarray]:
        found = [descriptors.describe(images) for images in self._grey()]
        return {"descriptors": np.concatenate(found)}

    def _constants(self, one: Baseline) -> steps.Constants:
        splits = split_of(self._materials.config, self._dataset, one.run)
        return constants_of(
            self._stage, self._model.channels, self._dataset, splits.train,
            self._materials.scale(one.run),
        )  # fmt: skip

    def _frozen(
        self, one: Baseline, constants: steps.Constants
    ) -> dict[str, np.ndarray]:
        model, classes = self._model, self._dataset.num_classes
        module = steps.build_model(model, classes, None)
        init_key, _ = keys(one.run.seed, TARGET)
        fresh = models.init(module, init_key, model.image_size, model.channels)
        variables = fresh
        if one.source:
            folder = self._materials.folder(one.source)
            variables = checkpoint.load_variables(folder / "variables")
        return frozen.features(
            module, variables, fresh, self._unit(), model.image_size,
            self._stage.data.normalise, constants.mean, constants.deviation,
        )  # fmt: skip


def _make(materials: Materials, one: Baseline, features: Features) -> None:
    dataset = materials.datasets[TARGET]
    splits = split_of(materials.config, dataset, one.run)
    labels = dataset.labels[splits.train]
    chosen: dict[str, Any] = {}
    if one.name == "majority" or len(np.unique(labels)) == 1:
        counts = np.bincount(labels, minlength=dataset.num_classes)
        row = (counts / counts.sum()).astype(np.float32)
        probabilities = np.tile(row, (len(splits.test), 1))
    else:
        # Imported only for fitting: scikit-learn loads slowly.
        from twostage_jax.baselines import linear

        found = features.of(one)
        groups = None if dataset.groups is None else dataset.groups[splits.train]
        train = {name: values[splits.train] for name, values in found.items()}
        fitted = linear.fit(train, labels, groups)
        test = {fitted.layer: found[fitted.layer][splits.test]}
        probabilities = fitted.probabilities(test, dataset.num_classes)
        chosen = {"layer": fitted.layer, "C": fitted.strength}
    predictions = Path("predictions") / f"{one.file_name}.npz"
    artifacts.save_predictions(
        materials.workdir / predictions, dataset, splits.test, probabilities
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
            "chosen": chosen,
        },
    )


def _path(materials: Materials, one: Baseline) -> Path:
    return materials.workdir / "baselines" / f"{one.file_name}.json"


def _key(materials: Materials, one: Baseline) -> str:
    """Returns a digest of everything that determines a baseline's predictions."""
    config, dataset = materials.config, materials.datasets[TARGET]
    data = as_json(config.stages[TARGET].data)
    del data["options"], data["image_size"]  # That of the network counts.
    return digest(
        VERSION, plan.RESULT_VERSION,  # A random network may be another one.
        one.name, data, as_json(config.network(TARGET)), dataset.fingerprint,
        place_of(config, one.run), one.source.hash if one.source else "",
        config.stages[TARGET].augment.average,
    )  # fmt: skip


def _read(materials: Materials, one: Baseline) -> dict[str, Any] | None:
    """Returns the results of a baseline; None if missing or outdated."""
    try:
        found = json.loads(_path(materials, one).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if found.pop("key") == _key(materials, one) else None

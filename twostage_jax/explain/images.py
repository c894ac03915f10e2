"""The images to explain: the test images of the target, or those of a folder."""

from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from twostage_jax import folders, io
from twostage_jax.config import DataConfig
from twostage_jax.data import class_folders, image_files, sources
from twostage_jax.data.dataset import Dataset, largest
from twostage_jax.errors import Notes, UserError
from twostage_jax.explain import networks
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.study import artifacts
from twostage_jax.train import augment

# Largest number of test images per seed, spread evenly over all of them.
MOST_EXAMPLES = 1024


def test_examples(
    workdir: Path, data_dir: Path, arms: Iterable[str] = ()
) -> tuple[dict[int, Examples], list[str]]:
    """Returns the test images of each seed, and lines on skipped images.

    Each seed draws its own folds: test images of one seed may be training images of
    another.

    Args:
      workdir: Folder of the study.
      data_dir: Folder of prepared data; missing sets are prepared.
      arms: Arms whose test images to return; all if empty.

    Returns:
      Seed, in order -> examples `[N, H, W, C]`. Seeds with the same test images share
      one object.

    Raises:
      UserError: The data cannot be loaded, or differ from those of the study; or arms
        of one seed were tested on different images.
    """
    wanted = list(arms)
    *_, rows = networks.chosen_rows(workdir)
    rows = [row for row in rows if not wanted or row["arm"] in wanted]
    rows.sort(key=lambda row: row["seed"])
    homes = [workdir / "stages" / Path(row["stage_runs"][-1]).name for row in rows]
    tested: dict[int, frozenset[str]] = {}
    for row, home in zip(rows, homes, strict=True):
        ids = _tested(home)
        if tested.setdefault(row["seed"], ids) != ids:
            raise UserError.at(
                workdir,
                f"arm '{row['arm']}', seed {row['seed']}, was tested on different "
                "images from the arms before it: run the study again, or select the "
                "other arms only (--arms).",
            )
    runs = [artifacts.read(home) for home in homes]
    first = runs[0]
    data = DataConfig(source=first.source, options=first.options)
    dataset = sources.load(data, first.model, data_dir)
    for run in runs:
        if run.fingerprint != dataset.fingerprint:
            raise UserError(
                f"the data of '{run.source}' differ from those that {run.folder.name} was "
                "trained on: restore the original files, or give a folder with --images.",
                where=run.source,
            )
    by_ids, lines = {}, []
    for ids in dict.fromkeys(tested.values()):
        by_ids[ids], left_out = usable(_of_ids(ids, dataset, first))
        seeds = [str(seed) for seed, of_seed in tested.items() if of_seed == ids]
        whose = f"Seed {', '.join(seeds)}: " if len(seeds) < len(tested) else ""
        lines += [whose + line for line in left_out]
    return {seed: by_ids[ids] for seed, ids in tested.items()}, lines


def _tested(home: Path) -> frozenset[str]:
    """Returns the ids of the examples that a stage run was tested on."""
    return frozenset(io.read_arrays(home / "predictions.npz", ("ids",))["ids"].tolist())


def _of_ids(ids: Iterable[str], dataset: Dataset, run: artifacts.Trained) -> Examples:
    """Returns at most `MOST_EXAMPLES` examples of a data set with these ids."""
    chosen = np.flatnonzero(np.isin(dataset.ids, list(ids)))
    chosen = chosen[_spread(len(chosen))]
    stored = jnp.asarray(dataset.images[chosen])
    unit = augment.to_unit(stored, run.window, run.model.channels)
    return Examples(
        np.asarray(augment.centre_crop(unit, run.model.image_size)),
        dataset.labels[chosen],
        None if dataset.groups is None else dataset.groups[chosen],
        dataset.ids[chosen],
        dataset.class_names,
    )


def folder_examples(path: Path, network: Network) -> tuple[Examples, list[str]]:
    """Returns the images of a folder and its sub-folders, and lines about them.

    Each is the largest centred square, resized. They have labels if every image lies in
    a folder named after a class of the network.

    Raises:
      UserError: The folder lacks images, or one cannot be decoded.
    """
    if not path.is_dir():
        raise UserError.flag("--images", path, "the folder does not exist.")
    below = folders.walk(path).files
    files = [file for file in below if file.suffix.lower() in class_folders.PICTURES]
    if not files:
        known = ", ".join(sorted(class_folders.PICTURES))
        raise UserError.flag("--images", path, f"the folder has no images ({known}).")
    files = [files[i] for i in _spread(len(files))]
    found, notes = largest(map(image_files.measure, files)), Notes()
    stored = np.stack(
        [
            image_files.whole(
                image_files.read(file, network.channels, found=found, notes=notes),
                network.size,
            )
            for file in files
        ]
    )
    labels, names = None, network.class_names
    if all(file.parent.name in names for file in files):
        labels = np.array([names.index(file.parent.name) for file in files], np.int32)
    ids = np.array([str(file.relative_to(path)) for file in files])
    images = stored.astype(np.float32) / 255
    examples, lines = usable(Examples(images, labels, None, ids, names))
    return examples, [*notes.lines(), *lines]


def usable(examples: Examples) -> tuple[Examples, list[str]]:
    """Removes constant images: nothing in them can be explained.

    Returns:
      The remaining examples, and a line that names the removed images, if any.

    Raises:
      UserError: A pixel is not finite, or all images are constant.
    """
    finite = np.isfinite(examples.images).all((1, 2, 3))
    if not finite.all():
        raise UserError(
            f"image {examples.ids[~finite][0]} has pixels that are not finite: "
            "repair or remove it.",
            where=str(examples.ids[~finite][0]),
        )
    kept = np.ptp(examples.images, axis=(1, 2, 3)) > augment.MIN_DEVIATION
    if not kept.any():
        raise UserError(
            "every image is constant: there is nothing to explain.", where="images"
        )
    if kept.all():
        return examples, []
    names = ", ".join(map(str, examples.ids[~kept][:5]))
    more = ", ..." if (~kept).sum() > 5 else ""
    lines = [f"Skipped constant images ({(~kept).sum()}): {names}{more}."]
    return examples.take(kept), lines


def _spread(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, MOST_EXAMPLES)).round().astype(int)

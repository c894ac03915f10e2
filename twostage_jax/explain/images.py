"""The images to show the networks of a study: of its target, or of a folder."""

from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from twostage_jax.config import DataConfig, ModelConfig
from twostage_jax.data import class_folders, image_files, sources
from twostage_jax.data.dataset import Dataset, largest
from twostage_jax.errors import Notes, UserError
from twostage_jax.explain import networks
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.study import artifacts
from twostage_jax.train import augment

# Test images of a seed looked at, at most; of more, as many spread evenly over them.
MOST_EXAMPLES = 1024


def test_examples(
    workdir: Path, data_dir: Path, arms: Iterable[str] = ()
) -> tuple[dict[int, Examples], list[str]]:
    """Returns the test images of each seed, and lines about the skipped ones.

    Each seed draws its own folds: images that one seed was tested on, another was
    trained on.

    Args:
      workdir: Folder of the study.
      data_dir: Folder of prepared data; what it lacks is prepared.
      arms: Those whose test images they are; all if empty.

    Returns:
      Seed, in order -> images `[N, H, W, C]` with what is known of them. Seeds that
      were tested on the same images share one object.

    Raises:
      UserError: The data cannot be loaded, or are not those that the study was run on;
        or arms of one seed were tested on different images.
    """
    wanted = list(arms)
    rows = [
        r for r in networks.chosen_rows(workdir)[1] if not wanted or r["arm"] in wanted
    ]
    rows.sort(key=lambda row: row["seed"])
    homes = [workdir / "stages" / Path(row["stage_runs"][-1]).name for row in rows]
    stages = [_stage(home) for home in homes]
    tested: dict[int, frozenset[str]] = {}
    for row, (*_, ids) in zip(rows, stages, strict=True):
        if tested.setdefault(row["seed"], ids) != ids:
            raise UserError(
                f"{workdir}: arm '{row['arm']}', seed {row['seed']}, was tested on other "
                "images than the arms before it: run the study again, or give the other "
                "arms alone (--arms).",
                where=workdir,
            )
    data, model = stages[0][:2]
    dataset = sources.load(data, model, data_dir)
    for home, (_, _, fingerprint, _) in zip(homes, stages, strict=True):
        if fingerprint != dataset.fingerprint:
            raise UserError(
                f"the data of '{data.source}' are not those that {home.name} was trained "
                "on: bring back the files of that time, or give --images a folder.",
                where=data.source,
            )
    by_ids, lines = {}, []
    for ids in dict.fromkeys(tested.values()):
        by_ids[ids], left_out = usable(_of_ids(ids, dataset, data, model))
        seeds = [str(seed) for seed, of_seed in tested.items() if of_seed == ids]
        whose = f"Seed {', '.join(seeds)}: " if len(seeds) < len(tested) else ""
        lines += [whose + line for line in left_out]
    return {seed: by_ids[ids] for seed, ids in tested.items()}, lines


def _stage(home: Path) -> tuple[DataConfig, ModelConfig, str, frozenset[str]]:
    """Returns settings, fingerprint of the data, and ids tested, of a stage run."""
    lineage = artifacts.read_lineage(home)
    try:
        settings = {**lineage["settings"]["data"]}
        settings["window"] = tuple(settings["window"])
        data, model = DataConfig(**settings), ModelConfig(**lineage["model"])
        fingerprint = lineage["data"]["fingerprint"]
        with np.load(home / "predictions.npz", allow_pickle=False) as saved:
            return data, model, fingerprint, frozenset(saved["ids"].tolist())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{home}: not a finished stage run ({error!r}).", where=home
        ) from error


def _of_ids(
    ids: Iterable[str], dataset: Dataset, data: DataConfig, model: ModelConfig
) -> Examples:
    """Returns the examples of a data set with these ids, `MOST_EXAMPLES` at most."""
    chosen = np.flatnonzero(np.isin(dataset.ids, list(ids)))
    chosen = chosen[_spread(len(chosen))]
    return Examples(
        to_unit(dataset.images[chosen], data.window, model),
        dataset.labels[chosen],
        None if dataset.groups is None else dataset.groups[chosen],
        dataset.ids[chosen],
        dataset.class_names,
    )


def folder_examples(path: Path, network: Network) -> tuple[Examples, list[str]]:
    """Returns the images of a folder and the folders in it, and lines about them.

    The largest centred square of each, resized. They have labels if every image lies in
    a folder called after a class of the network.

    Raises:
      UserError: There is no image, or one cannot be decoded.
    """
    if not path.is_dir():
        raise UserError(
            f"--images={path}: the folder does not exist.", where="--images"
        )
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix.lower() in class_folders.PICTURES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        known = ", ".join(sorted(class_folders.PICTURES))
        raise UserError(
            f"--images={path}: the folder has no images ({known}).", where="--images"
        )
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
    labels = None
    if all(file.parent.name in network.class_names for file in files):
        names = [network.class_names.index(file.parent.name) for file in files]
        labels = np.array(names, np.int32)
    ids = np.array([str(file.relative_to(path)) for file in files])
    images = stored.astype(np.float32) / 255
    examples = Examples(images, labels, None, ids, network.class_names)
    examples, lines = usable(examples)
    return examples, [*notes.lines(), *lines]


def to_unit(
    stored: np.ndarray, window: tuple[float, ...], model: ModelConfig
) -> np.ndarray:
    """Returns stored images as float32 in [0, 1], of the network's size and channels."""
    unit = augment.to_unit(jnp.asarray(stored), window, model.channels)
    return np.asarray(augment.centre_crop(unit, model.image_size))


def usable(examples: Examples) -> tuple[Examples, list[str]]:
    """Leaves out constant images: nothing in them can be explained.

    Returns:
      The examples, and a line that names the skipped images, if any.

    Raises:
      UserError: A pixel is not a finite number, or no image is left.
    """
    finite = np.isfinite(examples.images).all((1, 2, 3))
    if not finite.all():
        raise UserError(
            f"image {examples.ids[~finite][0]} has pixels that are not finite numbers: "
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
    lines = [f"Left out {(~kept).sum()} constant images: {names}{more}."]
    parts = {
        name: value if value is None else value[kept]
        for name, value in examples._asdict().items()
        if name != "class_names"
    }
    return Examples(**parts, class_names=examples.class_names), lines


def _spread(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, MOST_EXAMPLES)).round().astype(int)

"""The networks of a finished study, and their activations: batched, compiled."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import io, models
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.study import artifacts
from twostage_jax.study.plan import keys
from twostage_jax.train import augment, checkpoint, steps

PyTree = Any
Rows = list[dict[str, Any]]
BATCH = 64


class Network(NamedTuple):
    """The network of a finished stage run.

    Attributes:
      arm: Arm whose chain it belongs to.
      seed: Seed of the stage run.
      stage: Name of the stage; 'target' is the last stage of an arm.
      module: Linen module; equal for networks of the same settings.
      variables: `{'params': ..., 'batch_stats': ...}`, nested dicts of host arrays.
      class_names: Names of the K logits.
      size, channels: Side in pixels and number of channels of the images it is shown.
      normalise, mean, deviation: Scaling of images in [0, 1] for the network; see
        `train.augment.normalise`.
      parent: Network of the previous stage, or None if it started from random
        parameters.
      source, path: Source of the images of its stage; see `data.sources`. The path is
        empty if the source does not use one.
      trained_size: Side in pixels of the images of its stage, if other than `size`; or 0.
      run: Name of the folder of its stage run; empty for a network that is not one.
      redrawn: Layers (top-level names of parameters) with an array that the transfer
        from `parent` re-initialised.
      averages: Whether the predictions of its stage run are means over views of an
        image; see `config.AugmentConfig.average`.
    """

    arm: str
    seed: int
    stage: str
    module: Any
    variables: PyTree
    class_names: tuple[str, ...]
    size: int
    channels: int
    normalise: str
    mean: np.ndarray
    deviation: np.ndarray
    parent: "Network | None"
    source: str = ""
    path: str = ""
    trained_size: int = 0
    run: str = ""
    redrawn: frozenset[str] = frozenset()
    averages: bool = False

    @property
    def imported(self) -> bool:
        """Whether it is a file of weights, whose training is not part of the study."""
        return self.source == "weights"

    def chain(self) -> list["Network"]:
        """Returns the networks of its chain of stages; the last is the network itself."""
        return [*(self.parent.chain() if self.parent else []), self]


class Examples(NamedTuple):
    """Images to explain for the networks of a seed.

    Attributes:
      images: Images of the networks' size and channels, `[N, H, W, C]` float32 in
        [0, 1].
      labels: Class indices, `[N]` int32; None if the classes are not the target's.
      groups: Group of each image, such as its patient, `[N]` strings; None if unknown.
      ids: Names of the images, `[N]` strings.
      class_names: Names of the classes.
    """

    images: np.ndarray
    labels: np.ndarray | None
    groups: np.ndarray | None
    ids: np.ndarray
    class_names: tuple[str, ...]

    def take(self, chosen: np.ndarray) -> "Examples":
        """Returns the examples with these indices, or where a mask is true."""
        *arrays, names = self
        return Examples(*(a if a is None else a[chosen] for a in arrays), names)


def scaled(network: Network, images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, C]` in [0, 1] as scaled for the network."""
    program = functools.partial(
        _scaled, network.normalise, mean=network.mean, deviation=network.deviation
    )
    return in_batches(program, np.asarray(images, np.float32))


@functools.partial(jax.jit, static_argnums=0)
def _scaled(how, images, *, mean, deviation):
    return augment.normalise(images, how, mean, deviation)


def randomised(network: Network) -> Network:
    """Returns the network with the random initial parameters of its stage run.

    Training started from them if the network has no parent; otherwise the transfer
    replaced them.
    """
    return drawn(network, keys(network.seed, network.stage)[0])


def drawn(network: Network, key: jax.Array) -> Network:
    """Returns the network with random parameters, and without a parent."""
    variables = models.init(network.module, key, network.size, network.channels)
    # Some networks have no 'batch_stats'.
    variables = {kind: variables.get(kind, {}) for kind in network.variables}
    return network._replace(variables=jax.tree.map(np.asarray, variables), parent=None)


def first_kernel(network: Network) -> np.ndarray:
    """Returns the kernel `[k, k, channels, O]` of the layer that reads the image."""
    return np.asarray(network.variables["params"][network.module.FIRST_LAYER]["kernel"])


def tap_shapes(module: Any, variables: PyTree, images: Any) -> dict[str, tuple]:
    """Returns the shape of each tap for one image, `[h, w, C]` or `[C]`.

    Taps are in the order of computation.
    """
    found = {}

    def call(variables: PyTree, images: Any) -> Any:
        taps = module.apply(variables, images, train=False)[1]
        found.update({name: tap.shape[1:] for name, tap in taps.items()})
        return taps

    one = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.float32)
    jax.eval_shape(call, variables, one)
    return found


def check_tap(shapes: dict[str, tuple], tap: str) -> None:
    """Raises a UserError if the network lacks such a tap."""
    if tap not in shapes:
        raise UserError(
            f"the network does not have a tap '{tap}'.{did_you_mean(tap, shapes)}",
            where=tap,
        )


def of_first_seed(arms: Mapping[str, Sequence[Network]]) -> dict[str, Network]:
    """Returns each arm's network of the first seed that all arms share.

    Raises:
      UserError: The arms do not share a seed.
    """
    by_seed = [{network.seed: network for network in one} for one in arms.values()]
    shared = set(by_seed[0]).intersection(*by_seed)
    if not shared:
        raise UserError(
            f"arms {', '.join(arms)} do not share a seed: train the missing runs, or "
            "select fewer arms with --arms.",
            where="--arms",
        )
    return {arm: of_arm[min(shared)] for arm, of_arm in zip(arms, by_seed, strict=True)}


def distinct(examples: Mapping[int, Examples]) -> int:
    """Returns the number of distinct sets of images; 1 if all seeds share one object."""
    return len({id(of_seed) for of_seed in examples.values()})


def in_batches(function: Callable, *arrays: Any) -> Any:
    """Returns `function(*arrays)`, called on `BATCH` examples at a time.

    The last batch is padded by repeating its last example, so that a function is
    compiled only once.

    Args:
      function: Function from arrays to an array, or a tree of arrays, with the same
        first axis.
      *arrays: Inputs, `[N, ...]`, N at least 1; fewer than `BATCH` are one batch.

    Returns:
      Host arrays `[N, ...]`.
    """
    count = len(arrays[0])
    if not count:
        raise ValueError("no examples")
    size = min(BATCH, count)
    parts = []
    for first in range(0, count, size):
        take = np.minimum(np.arange(first, first + size), count - 1)
        part = function(*(np.asarray(array)[take] for array in arrays))
        parts.append(jax.tree.map(np.asarray, part))
    return jax.tree.map(lambda *p: np.concatenate(p)[:count], *parts)


@functools.partial(jax.jit, static_argnames=("module",))
def _logits(module: Any, variables: PyTree, images: jax.Array) -> jax.Array:
    return module.apply(variables, images, train=False)[0]


def logits(network: Network, images: np.ndarray) -> np.ndarray:
    """Returns the logits `[N, K]` of images `[N, H, W, C]` in [0, 1]."""
    program = functools.partial(_logits, network.module, network.variables)
    return in_batches(program, scaled(network, images))


def probabilities(network: Network, images: np.ndarray) -> np.ndarray:
    """Returns the class probabilities `[N, K]` of images `[N, H, W, C]` in [0, 1]."""
    return np.asarray(jax.nn.softmax(logits(network, images)))


def activations(
    network: Network,
    images: np.ndarray,
    taps: Sequence[str],
    summary: Callable[[jax.Array], Any],
) -> dict[str, Any]:
    """Returns a summary of each tap as host arrays.

    Args:
      network: The network.
      images: `[N, H, W, C]` in [0, 1].
      taps: Names of taps; see `tap_shapes`.
      summary: Function from a tap `[n, ...]` to `[n, ...]`, compiled with the network.
        Define it at module level: a new function object is compiled each time.

    Raises:
      UserError: A tap does not exist.
    """
    module, variables = network.module, network.variables
    shapes = tap_shapes(module, variables, images)
    for tap in taps:
        check_tap(shapes, tap)
    program = functools.partial(_activations, module, tuple(taps), summary, variables)
    return in_batches(program, scaled(network, images))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _activations(module, taps, summary, variables, images):
    found = module.apply(variables, images, train=False)[1]
    return {tap: summary(found[tap].astype(jnp.float32)) for tap in taps}


def load_arms(workdir: Path, arms: Sequence[str] = ()) -> dict[str, list[Network]]:
    """Returns the final networks of the arms, one per seed, in order of seed.

    They belong to the largest fraction of the training data, and to its first fold; see
    `chosen_runs`.

    Args:
      workdir: Folder of a study.
      arms: Names of arms; all trained arms if empty.

    Raises:
      UserError: Results are missing, an arm was not trained, a file cannot be read, or
        parameters are not finite.
    """
    known, _, rows = chosen_rows(workdir)
    for arm in arms:
        if arm not in known:
            raise UserError.flag(
                "--arms",
                arm,
                f"the study does not have this arm.{did_you_mean(arm, known)}",
            )
        if not any(row["arm"] == arm for row in rows):
            raise UserError(
                f"{workdir}: arm '{arm}' has not been trained: run the study with "
                f"--config.study.arms={arm} and this workdir, or remove it from --arms.",
                where="--arms",
            )
    loaded: dict[str, Network] = {}
    found: dict[str, list[Network]] = {arm: [] for arm in arms or known}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["arm"] in found:
            found[row["arm"]].append(_chain(workdir, row, loaded))
    return {arm: networks for arm, networks in found.items() if networks}


def chosen_runs(workdir: Path, arms: Sequence[str] = ()) -> list[str]:
    """Returns lines on the fold and fraction of `load_arms`, and on arms without them.

    Folds are never mixed: the networks of one were trained on test patients of another.

    Args:
      workdir: Folder of a study.
      arms: Names of arms, as for `load_arms`.
    """
    known, every, rows = chosen_rows(workdir)
    folds, fractions = (
        sorted({row[name] for row in every}) for name in ("fold", "fraction")
    )
    share, fold = rows[0]["fraction"], rows[0]["fold"]
    text = f"The networks were trained on {100 * share:.0f} % of the training data"
    if len(fractions) > 1:
        text += f", the largest of {len(fractions)} fractions"
    if len(folds) > 1:
        text += f", in fold {fold} (available: {_listed(folds)})"
    lines = [f"{text}."]
    seeds = {row["seed"] for row in rows}
    for arm in arms or known:
        lacks = seeds - {row["seed"] for row in rows if row["arm"] == arm}
        trained = any(row["arm"] == arm for row in every)
        if trained and lacks:
            lines.append(
                f"Arm '{arm}' lacks such a run for seed {_listed(sorted(lacks))}."
            )
    return lines


def stages_of_other_sizes(arms: Mapping[str, Sequence[Network]]) -> list[str]:
    """Returns a line per stage that was trained on images of another size."""
    sizes = {
        one.stage: (one.trained_size, one.size)
        for of_arm in arms.values()
        for network in of_arm
        for one in network.chain()
        if one.trained_size
    }
    return [
        f"Stage '{stage}' was trained on images of {trained} pixels, but is shown images "
        f"of {size} pixels, as the target."
        for stage, (trained, size) in sizes.items()
    ]


def views_not_averaged(arms: Mapping[str, Sequence[Network]]) -> list[str]:
    """Returns a line if the study averages over views of an image, unlike `logits`."""
    if not any(network.averages for of_arm in arms.values() for network in of_arm):
        return []
    return [
        "Predictions of the study are means over several views of an image; accuracies, "
        "probabilities and maps here are those of its centre alone, as stored."
    ]


def chosen_rows(workdir: Path) -> tuple[list[str], Rows, Rows]:
    """Returns the names of all arms, all rows, and those of the largest fraction.

    The latter are of one fold.

    Raises:
      UserError: The workdir holds no results of a study.
    """
    path = workdir / "results.json"
    if not path.is_file():
        raise UserError.at(
            workdir,
            "results.json is missing. Set --run to the workdir of a finished study.",
        )
    results = io.read_json(path)
    try:
        known, rows = list(results["config"]["arms"]), results["rows"]
        place = min((-row["fraction"], row["fold"]) for row in rows)
        chosen = [row for row in rows if (-row["fraction"], row["fold"]) == place]
        for row in chosen:
            _ = row["arm"], row["seed"], row["stage_runs"][-1]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError.at(path, f"not the results of a study ({error!r}).") from error
    return known, rows, chosen


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _chain(
    workdir: Path, row: Mapping[str, Any], loaded: dict[str, Network]
) -> Network:
    """Returns the network of a row's last stage run, linked to its parents.

    All are shown images of the size of the last, so that their responses to one image
    can be compared.

    Raises:
      UserError: A network cannot be shown them, because of its dense layers.
    """
    network = None
    names = [Path(run).name for run in row["stage_runs"]]
    for name in names:
        if name not in loaded:
            loaded[name] = _network(workdir / "stages" / name)._replace(run=name)
    size = loaded[names[-1]].size
    for name in names:
        one = loaded[name]
        if one.size != size:
            one = _shown_at(one, size, row["arm"])
        redrawn = _redrawn(workdir / "stages" / name) if network else frozenset()
        # An imported stage serves every seed.
        network = one._replace(
            arm=row["arm"], seed=row["seed"], parent=network, redrawn=redrawn
        )
    return network


def _redrawn(home: Path) -> frozenset[str]:
    """Returns the layers with an array that a stage run's transfer re-initialised.

    Raises:
      UserError: `transfer.json` is missing or lacks a field.
    """
    path = home / "transfer.json"
    report = io.read_json(path)
    try:
        paths = [row["path"] for row in report["rows"] if row["action"] == "init"]
    except (KeyError, TypeError) as error:
        raise UserError.at(
            path, f"not the report of a transfer ({error!r})."
        ) from error
    return frozenset(p.split("/")[1] for p in paths if p.startswith("params/"))


def _shown_at(network: Network, size: int, arm: str) -> Network:
    """Returns the network for images of another size than those of its stage."""
    expected = models.shapes(network.module, size, network.channels)
    shapes, wanted = (
        jax.tree.map(np.shape, tree["params"]) for tree in (network.variables, expected)
    )
    if shapes != wanted:
        raise UserError(
            f"arm '{arm}': the dense layers of stage '{network.stage}' take images of "
            f"{network.size} pixels only, so it cannot be compared on those of the "
            f"target, {size} pixels. Select other arms with --arms.",
            where="--arms",
        )
    return network._replace(size=size, trained_size=network.size)


def _network(home: Path) -> Network:
    run = artifacts.read(home)
    network = Network(
        arm="",
        seed=run.seed,
        stage=run.stage,
        # An imported stage without a head gets a random head with one class.
        module=steps.build_model(run.model, max(len(run.class_names), 1), None),
        variables=checkpoint.load_variables(home / "variables"),
        class_names=run.class_names,
        size=run.model.image_size,
        channels=run.model.channels,
        normalise=run.normalise,
        mean=np.asarray(run.mean, np.float32),
        deviation=np.asarray(run.deviation, np.float32),
        parent=None,
        source=run.source,
        path=str(run.options.get("path", "")),
        averages=run.augment.average,
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.variables):
        if not np.isfinite(leaf).all():
            where = "/".join(str(key.key) for key in path)
            raise UserError.at(
                home / "variables",
                f"{where} contains values that are not finite. Delete the stage's "
                "folder and run the study again.",
            )
    return network


def say(text: str) -> None:
    """Prints a line of progress."""
    print(text, flush=True)

"""The networks of a finished study, and calling one for its taps: batched, compiled."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import models
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.explain import backward
from twostage_jax.study import artifacts
from twostage_jax.study.plan import keys
from twostage_jax.train import augment, checkpoint, steps

PyTree = Any
BATCH = 64


class Network(NamedTuple):
    """The network of a finished stage run.

    Attributes:
      arm: The arm whose chain it belongs to.
      seed: Seed of the stage run.
      stage: Name of the stage: 'target' for what an arm ends with.
      module: The Linen module; networks of the same settings have equal ones.
      variables: `{'params': ..., 'batch_stats': ...}`, nested dicts of host arrays.
      class_names: Names of the K logits.
      size, channels: Of the images that it takes.
      normalise, mean, deviation: How images in [0, 1] are scaled for it; see
        `data.augment.normalise`.
      window: (centre, width) pairs in HU, flattened; see `data.augment.to_unit`.
      parent: The network of the stage before, or None if it started from random
        parameters.
      source, path: Where the images of its stage come from; see `data.sources`. The
        path is empty where the source has none.
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
    window: tuple[float, ...]
    parent: "Network | None"
    source: str = ""
    path: str = ""


class Examples(NamedTuple):
    """Images that the networks of a seed are shown.

    Attributes:
      images: `[N, H, W, C]` float32 in [0, 1], of the networks' size and channels.
      labels: `[N]` int32, or None where the classes are not those of the target.
      groups: `[N]` strings: what belongs together (a patient), or None.
      ids: `[N]` strings.
      class_names: One a class.
    """

    images: np.ndarray
    labels: np.ndarray | None
    groups: np.ndarray | None
    ids: np.ndarray
    class_names: tuple[str, ...]


def scaled(network: Network, images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, C]` in [0, 1] as the network takes them."""
    program = functools.partial(
        _scaled, network.normalise, mean=network.mean, deviation=network.deviation
    )
    return in_batches(program, np.asarray(images, np.float32))


@functools.partial(jax.jit, static_argnums=0)
def _scaled(how, images, *, mean, deviation):
    return augment.normalise(images, how, mean, deviation)


def randomised(network: Network) -> Network:
    """Returns the network with the parameters that its stage run drew at its start.

    Those that it was trained from, where it has no parent; where it has one, what the
    transfer replaced.
    """
    return drawn(network, keys(network.seed, network.stage)[0])


def drawn(network: Network, key: jax.Array) -> Network:
    """Returns the network with random parameters, and without a parent."""
    variables = models.init(network.module, key, network.size, network.channels)
    # Some networks have no 'batch_stats'.
    variables = {kind: variables.get(kind, {}) for kind in network.variables}
    return network._replace(variables=jax.tree.map(np.asarray, variables), parent=None)


def tap_shapes(module: Any, variables: PyTree, images: Any) -> dict[str, tuple]:
    """Returns the shape of each tap for one image, `[h, w, C]` or `[C]`, in order.

    The order is that in which the network computes them.
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
            f"the network has no tap '{tap}'.{did_you_mean(tap, shapes)}", where=tap
        )


def of_first_seed(arms: Mapping[str, Sequence[Network]]) -> dict[str, Network]:
    """Returns each arm's network of the first seed that all arms have.

    Raises:
      UserError: The study lacks the seed.
    """
    by_seed = [{network.seed: network for network in one} for one in arms.values()]
    shared = set(by_seed[0]).intersection(*by_seed)
    if not shared:
        raise UserError(
            f"no seed has a network of all arms ({', '.join(arms)}): train what is "
            "missing, or leave arms out with --arms.",
            where="--arms",
        )
    return {arm: of_arm[min(shared)] for arm, of_arm in zip(arms, by_seed, strict=True)}


def distinct(examples: Mapping[int, Examples]) -> int:
    """Returns how many sets of images seeds are shown; 1 if all share one object."""
    return len({id(of_seed) for of_seed in examples.values()})


def in_batches(function: Callable, *arrays: Any, size: int = BATCH) -> Any:
    """Returns `function(*arrays)`, called on `size` examples at a time.

    The last batch is filled up by repeating its last example, so that a compiled
    function is compiled once.

    Args:
      function: From arrays `[size, ...]` to an array, or a tree of arrays, of the same
        first axis.
      *arrays: `[N, ...]`, N at least 1.
      size: Examples at a time; fewer examples are one batch.

    Returns:
      Host arrays `[N, ...]`.
    """
    count = len(arrays[0])
    if not count:
        raise ValueError("no examples")
    size = min(size, count)
    parts = []
    for first in range(0, count, size):
        take = np.minimum(np.arange(first, first + size), count - 1)
        part = function(*(np.asarray(array)[take] for array in arrays))
        parts.append(jax.tree.map(np.asarray, part))
    return jax.tree.map(lambda *p: np.concatenate(p)[:count], *parts)


@functools.partial(jax.jit, static_argnames=("module",))
def _logits(module: Any, variables: PyTree, images: jax.Array) -> jax.Array:
    return module.apply(variables, images, train=False)[0]


def logits(module: Any, variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Returns the logits `[N, K]` of images `[N, H, W, C]`."""
    return in_batches(functools.partial(_logits, module, variables), images)


def probabilities(module: Any, variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Returns the class probabilities `[N, K]` of images `[N, H, W, C]`."""
    return np.asarray(jax.nn.softmax(logits(module, variables, images)))


def activations(
    module: Any,
    variables: PyTree,
    images: np.ndarray,
    taps: tuple[str, ...],
    summary: Callable[[jax.Array], jax.Array] = lambda tap: tap,
) -> dict[str, np.ndarray]:
    """Returns taps, or what `summary` makes of each, as host arrays.

    Args:
      module, variables: The network.
      images: `[N, H, W, C]`, as the network takes them.
      taps: Names; see `tap_shapes`.
      summary: From a tap `[n, ...]` to `[n, ...]`, compiled with the network. Give a
        function of a module: a new one each time is compiled each time.

    Raises:
      UserError: A tap does not exist.
    """
    shapes = tap_shapes(module, variables, images)
    for tap in taps:
        check_tap(shapes, tap)
    program = functools.partial(_activations, module, tuple(taps), summary, variables)
    return in_batches(program, images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _activations(module, taps, summary, variables, images):
    found = module.apply(variables, images, train=False)[1]
    return {tap: summary(found[tap].astype(jnp.float32)) for tap in taps}


def with_offset(module: Any, tap: str) -> Callable:
    """Returns `(variables, images, offset) -> (logits, tap)`, `offset` added to the tap.

    Its derivative by the offset is that of the logits by the tap, which no call of the
    module alone gives.
    """

    def call(variables: PyTree, images: jax.Array, offset: jax.Array) -> Any:
        def moved(name: str, value: jax.Array) -> jax.Array:
            return value + offset.astype(value.dtype) if name == tap else value

        with backward.replaced(tap=moved):
            logits, taps = module.apply(variables, images, train=False)
        return logits, taps[tap]

    return call


def load_arms(workdir: Path, arms: Sequence[str] = ()) -> dict[str, list[Network]]:
    """Returns the networks that the arms end with, one per seed, in order of seed.

    Those of the largest fraction of the training data, and of its first fold; see
    `chosen_runs`.

    Args:
      workdir: Folder of a study.
      arms: Names; all that were trained if empty.

    Raises:
      UserError: There are no results, an arm was not trained, a file cannot be read, or
        parameters are not finite.
    """
    known, rows = chosen_rows(workdir)
    for arm in arms:
        if arm not in known:
            raise UserError(
                f"--arms={arm}: the study has no such arm.{did_you_mean(arm, known)}",
                where="--arms",
            )
        if not any(row["arm"] == arm for row in rows):
            raise UserError(
                f"{workdir}: arm '{arm}' has not been trained: run the study with "
                f"--config.study.arms={arm} and this workdir, or leave it out of --arms.",
                where="--arms",
            )
    loaded: dict[str, Network] = {}
    found: dict[str, list[Network]] = {arm: [] for arm in arms or known}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["arm"] in found:
            found[row["arm"]].append(_chain(workdir, row, loaded))
    return {arm: networks for arm, networks in found.items() if networks}


def chosen_runs(workdir: Path, arms: Sequence[str] = ()) -> list[str]:
    """Returns lines on the fold and fraction that `load_arms` takes, and who lacks them.

    Folds are never mixed: the networks of one were trained on test patients of another.

    Args:
      workdir: Folder of a study.
      arms: As for `load_arms`.
    """
    known, rows = chosen_rows(workdir)
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    folds, fractions = (
        sorted({row[name] for row in results["rows"]}) for name in ("fold", "fraction")
    )
    share, fold = rows[0]["fraction"], rows[0]["fold"]
    text = f"The networks are those trained on {share:.0%} of the training data"
    if len(fractions) > 1:
        text += f", the most of {len(fractions)} fractions"
    if len(folds) > 1:
        text += f", in fold {fold} of {len(folds)} folds ({_listed(folds)})"
    lines = [f"{text}."]
    seeds = {row["seed"] for row in rows}
    for arm in arms or known:
        lacks = seeds - {row["seed"] for row in rows if row["arm"] == arm}
        trained = any(row["arm"] == arm for row in results["rows"])
        if trained and lacks:
            lines.append(
                f"Arm '{arm}' has no finished run of that kind for seed "
                f"{_listed(sorted(lacks))}."
            )
    return lines


def chosen_rows(workdir: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the names of all arms, and the rows of the largest fraction, one fold.

    Raises:
      UserError: The workdir holds no results of a study.
    """
    path = workdir / "results.json"
    if not path.is_file():
        raise UserError(
            f"{workdir}: no results.json here. Give --run the workdir of a study that "
            "has been run.",
            where=workdir,
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        known, rows = list(results["config"]["arms"]), list(results["rows"])
        place = min((-row["fraction"], row["fold"]) for row in rows)
        chosen = [row for row in rows if (-row["fraction"], row["fold"]) == place]
        for row in chosen:
            _ = row["arm"], row["seed"], row["stage_runs"][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: not the results of a study ({error!r}).", where=path
        ) from error
    return known, chosen


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _chain(
    workdir: Path, row: Mapping[str, Any], loaded: dict[str, Network]
) -> Network:
    """Returns the network of the last of a row's stage runs, and so its parents."""
    network = None
    for name in (Path(run).name for run in row["stage_runs"]):
        if name not in loaded:
            loaded[name] = _network(workdir / "stages" / name)
        # An imported stage serves every seed.
        network = loaded[name]._replace(
            arm=row["arm"], seed=row["seed"], parent=network
        )
    return network


def _network(home: Path) -> Network:
    run = artifacts.read(home)
    network = Network(
        arm="",
        seed=run.seed,
        stage=run.stage,
        # An imported stage without a head has a random one, of one class.
        module=steps.build_model(run.model, max(len(run.class_names), 1), None),
        variables=checkpoint.load_variables(home / "variables"),
        class_names=run.class_names,
        size=run.model.image_size,
        channels=run.model.channels,
        normalise=run.normalise,
        mean=np.asarray(run.mean, np.float32),
        deviation=np.asarray(run.deviation, np.float32),
        window=run.window,
        parent=None,
        source=run.source,
        path=str(run.options.get("path", "")),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.variables):
        if not np.isfinite(leaf).all():
            where = "/".join(str(key.key) for key in path)
            raise UserError(
                f"{home / 'variables'}: {where} holds numbers that are not finite. "
                "Delete the stage's folder and run the study again.",
                where=home / "variables",
            )
    return network

"""Stages that are imported from a file of public weights instead of trained."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from twostage_jax import models
from twostage_jax import transfer as transfers
from twostage_jax.config import Config, ModelConfig, as_json
from twostage_jax.data.dataset import digest
from twostage_jax.errors import UserError
from twostage_jax.models import HEAD, Network, pretrained
from twostage_jax.runtime import versions
from twostage_jax.train import steps

# Start of the field 'software' in the header of an export; see `export.metadata`.
SOFTWARE = "twostage_jax "
# Image side of the public networks, pixels.
PUBLIC_SIZE = 227


@dataclasses.dataclass(frozen=True)
class Stated:
    """Information in the header of a weights file.

    Attributes:
      licence: Licence of the weights; None if not stated.
      mean, deviation: Scale of images in [0, 1] used to train the weights; None if the
        file is not an export of this program. Without effect if `patch`.
      patch: Whether each training image was standardised individually.
      window: (centre, width) pairs in HU of the training images, flattened; empty if not
        in HU or unknown.
      class_names: Names of the classes; empty if unknown.
      started_from: Files of weights that the training started from: 'file', 'sha256'
        and 'licence' (None if not recorded) of each.
    """

    licence: str | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    patch: bool = False
    window: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    started_from: tuple[Mapping[str, str | None], ...] = ()

    @property
    def notes(self) -> list[str]:
        """Sentences on the training of the weights, apart from the scale of images."""
        notes = [
            f"trained from {origin['file']}, SHA-256 {origin['sha256'][:12]}, licence "
            f"{origin['licence'] or 'not recorded'}"
            for origin in self.started_from
        ]
        if self.window:
            window = ", ".join(f"{value:g}" for value in self.window)
            notes.append(f"trained on images in HU, window (centre, width) {window}")
        return notes


@dataclasses.dataclass(frozen=True)
class Weights:
    """Variables of a file, which replace a data set and its training.

    Attributes:
      path: Weights file.
      fingerprint: SHA-256 of the file.
      placed: Arrays of the file and their positions; the first layer has the channels of
        the network, dense layers have the shapes of the file.
      mean, deviation: Scale of images in [0, 1] for the first layer, `[channels]`.
      stated: Information in the header of the file.
      notes: Sentences on the scale of the images, and on changes during the import.
    """

    path: Path
    fingerprint: str
    placed: pretrained.Placed
    mean: np.ndarray
    deviation: np.ndarray
    stated: Stated
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """Lines on what the file gives the network, for the log and for `inspect`."""
        placed = self.placed
        lines = [f"imported {len(placed.names)} arrays of {self.path}", *self.notes]
        if unused := [n for n in placed.unused if not pretrained.UNUSED.search(n)]:
            lines.append(f"unused: {', '.join(unused)}")
        if placed.missing:
            lines.append(
                f"initialised at random (missing): {', '.join(placed.missing)}"
            )
        return lines

    @property
    def normalise(self) -> str:
        """Scaling of images: 'weights', by mean and standard deviation, or 'patch'."""
        return "patch" if self.stated.patch else "weights"

    @property
    def variables(self) -> dict[str, Any]:
        """Nested dicts of arrays, without layers missing from the file."""
        return self.placed.variables

    @property
    def num_classes(self) -> int:
        """Number of classes of the head; 1 if the file lacks a head."""
        head = self.variables["params"].get(HEAD)
        return head["kernel"].shape[-1] if head else 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers; empty if the file lacks a head."""
        if HEAD not in self.variables["params"]:
            return ()
        if len(self.stated.class_names) == self.num_classes:
            return self.stated.class_names
        return tuple(map(str, range(self.num_classes)))


def load(config: Config, stage: str) -> Weights:
    """Returns the weights of an imported stage.

    Raises:
      UserError: The file cannot be read, a setting contradicts its header, or arrays do
        not fit the network; the message names them. Layers missing from the file are
        left to the rules of the next transfer.
    """
    settings, path = config.stages[stage], f"config.stages.{stage}"
    try:
        weights = read(
            Path(settings.weights),
            config.model,
            settings.weights_mean,
            settings.weights_deviation,
        )
    except UserError as error:
        raise UserError(f"{path}.weights: {error}", where=error.where) from None
    stated = weights.stated
    for name in ("mean", "deviation"):
        given, own = getattr(settings, f"weights_{name}"), getattr(stated, name)
        if given and (stated.patch or (own and not _same(given, own))):
            there = "each image is standardised individually" if stated.patch else own
            raise _differs(f"{path}.weights_{name}", given, there)
    licence = settings.weights_licence
    if licence and stated.licence and licence != stated.licence:
        raise _differs(f"{path}.weights_licence", licence, stated.licence)
    if stated.patch:
        _check_followers(config, stage)
    licence = licence or stated.licence
    stated = dataclasses.replace(stated, licence=licence)
    return dataclasses.replace(weights, stated=stated)


def _same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    short = len(one) in (1, len(other)) or len(other) == 1
    return short and np.allclose(one, other, rtol=1e-4, atol=0)


def _differs(setting: str, given: Any, stated: Any) -> UserError:
    return UserError(
        f"{setting} is {given!r}, but the weights file states {stated}. Leave the setting "
        "empty to use the value of the file.",
        where=setting,
    )


def _check_followers(config: Config, first: str) -> None:
    """Raises a UserError for 'weights' scaling if the weights do not define it."""
    for chain in config.arms.values():
        for stage in chain[1:] if chain[0] == first else ():
            if config.stages[stage].data.normalise == "weights":
                setting = f"config.stages.{stage}.data.normalise"
                raise UserError(
                    f"{setting} is 'weights', but the weights of stage '{first}' were "
                    "trained on individually standardised images: set it to 'patch'.",
                    where=setting,
                )


def read(
    path: Path,
    model: ModelConfig,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[float, ...] | None = None,
) -> Weights:
    """Returns the weights of a file for a network.

    Args:
      path: Weights file; see `pretrained.read`.
      model: Settings of the network.
      mean, deviation: Mean and standard deviation of images in [0, 1], one value or one
        per channel of the file; None for those stated in the file, or else those of the
        network's public weights.

    Raises:
      UserError: See `load`.
    """
    network = models.MODELS[model.name]
    arrays = pretrained.read(path)
    stated = _stated(path, model)
    placed = _placed(arrays, model, path)
    kernel = placed.variables["params"].get(network.FIRST_LAYER, {}).get("kernel")
    channels = model.channels if kernel is None else kernel.shape[2]
    given = {"mean": mean or stated.mean, "deviation": deviation or stated.deviation}
    assumed = [name for name, values in given.items() if not values]
    mean = mean or stated.mean or network.PUBLIC_MEAN
    deviation = deviation or stated.deviation or network.PUBLIC_DEVIATION
    mean = _per_channel(mean, channels, path)
    deviation = _per_channel(deviation, channels, path)
    if np.abs(mean).max() > 2 or deviation.max() > 2:
        raise UserError.at(
            path,
            "weights_mean and weights_deviation are those of images in [0, 1]: divide "
            "them by the largest value of the images, such as 255.",
        )
    notes = [_scale_note(mean, deviation, stated, network, assumed)]
    notes += stated.notes
    if channels != model.channels:
        if len(set(zip(stated.window[::2], stated.window[1::2], strict=True))) > 1:
            raise UserError.at(
                path,
                "the weights read several HU windows, one per channel, so their first "
                f"layer cannot be changed: set config.model.channels to {channels}.",
            )
        first = placed.variables, network, mean, deviation
        changed = to_grey(*first, path) if model.channels == 1 else to_rgb(*first)
        mean, deviation, note = changed
        notes.append(note)
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(path, fingerprint, placed, mean, deviation, stated, tuple(notes))


def _scale_note(
    mean: np.ndarray,
    deviation: np.ndarray,
    stated: Stated,
    network: type[Network],
    assumed: Sequence[str],
) -> str:
    """Returns a sentence on the scale of the training images of weights.

    Args:
      mean, deviation: Scale of images in [0, 1], `[channels]`.
      stated: Information in the header of the file.
      network: Class of the network.
      assumed: Which of the two, 'mean' and 'deviation', are those of the network's public
        weights, for lack of a setting or a header.
    """
    if stated.patch:
        return "trained on individually standardised images"
    numbers = (", ".join(f"{v:.4g}" for v in values) for values in (mean, deviation))
    note = "trained on images with mean {} and standard deviation {}".format(*numbers)
    if not assumed:
        return note
    name = re.search(r"(?:models\.|')(\w+)", network.PYTORCH)
    public = name[1] if name else network.__name__
    what = {"mean": "this mean", "deviation": "this standard deviation"}
    scale = "this scale" if len(assumed) == 2 else what[assumed[0]]
    settings = " and ".join(f"weights_{name}" for name in assumed)
    return (
        f"{note}: {scale} is assumed, that of the public weights of {public}; for "
        f"others, set {settings}"
    )


def _stated(path: Path, model: ModelConfig) -> Stated:
    """Returns the information on weights in the header of a file.

    Raises:
      UserError: The weights belong to a network other than `model`, or the header is
        damaged.
    """
    header = pretrained.header(path)
    licence = str(header["license"]) if header.get("license") else None
    if not str(header.get("software", "")).startswith(SOFTWARE):
        return Stated(licence)
    try:
        fields = {field.name for field in dataclasses.fields(ModelConfig)}
        # Later versions may have more fields.
        made = ModelConfig(**{k: v for k, v in header["model"].items() if k in fields})
        mean, deviation = (tuple(map(float, header[k])) for k in ("mean", "deviation"))
        stated = Stated(
            licence=licence,
            mean=mean,
            deviation=deviation,
            patch=header["normalise"] == "patch",
            window=tuple(map(float, header["window_hu"] or ())),
            class_names=tuple(map(str, header["classes"])),
            # Earlier versions lack it.
            started_from=tuple(map(_origin, header.get("started_from", ()))),
        )
        if not np.isfinite((*mean, *deviation, *stated.window)).all():
            raise ValueError("some numbers are not finite")
        if min(deviation) <= 0 or len(stated.window) % 2:
            raise ValueError(f"deviation {deviation}, window {stated.window}")
        steps.build_model(made, 1, None)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError.at(
            path, f"the header of the weights file cannot be read ({error!r})."
        ) from None
    # Networks that share all arrays may compute different things.
    own = [(m.name, steps.build_model(m, 1, None).norm) for m in (made, model)]
    if own[0] != own[1]:
        there, here = (f"{name} {norm}".strip() for name, norm in own)
        raise UserError.at(path, f"the weights belong to {there}, not to {here}.")
    return stated


def _origin(told: Mapping[str, Any]) -> dict[str, str | None]:
    licence = told["licence"]
    return {
        "file": str(told["file"]),
        "sha256": str(told["sha256"]),
        "licence": None if licence is None else str(licence),
    }


def scale(model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation `[channels]` of a network's public weights."""
    network = models.MODELS[model.name]
    rgb = np.float32(network.PUBLIC_MEAN), np.float32(network.PUBLIC_DEVIATION)
    if model.channels == 3:
        return rgb
    return tuple(values.mean(keepdims=True) for values in rgb)


def _placed(
    arrays: Mapping[str, np.ndarray], model: ModelConfig, path: Path
) -> pretrained.Placed:
    """Returns the arrays of a file at their positions in a network.

    If the public network ends in dense layers but this one in an orderless head, these
    layers, and a head on top of them, are not used.
    """
    own = _shapes(model)
    layout = {**_shapes(dataclasses.replace(model, head="")), **own}
    placed = pretrained.place(
        arrays,
        models.MODELS[model.name],
        traverse_util.unflatten_dict(layout, sep="/"),
        path,
        partial=True,
    )
    found = traverse_util.flatten_dict(placed.variables, sep="/")
    kernel = f"params/{HEAD}/kernel"
    if kernel in found and found[kernel].shape[0] != own[kernel].shape[0]:
        found = {k: v for k, v in found.items() if not k.startswith(f"params/{HEAD}/")}
    used = {place: found[place] for place in own if place in found}
    names = placed.names
    return pretrained.Placed(
        variables=traverse_util.unflatten_dict(used, sep="/"),
        names={place: names[place] for place in used},
        unused=(*placed.unused, *(names[k] for k in names if k not in used)),
        missing=tuple(place for place in own if place not in used),
    )


def _shapes(model: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns path -> shape of a network's variables, for public images, one class."""
    module = steps.build_model(model, 1, None)
    made = models.shapes(module, PUBLIC_SIZE, 3)
    return traverse_util.flatten_dict(made, sep="/")


def _per_channel(values: tuple[float, ...], channels: int, path: Path) -> np.ndarray:
    if len(values) not in (1, channels):
        raise UserError(
            f"the number of channels of the first layer of {path} is {channels}, but the "
            f"mean or the standard deviation of its images has {len(values)} values: set "
            "weights_mean and weights_deviation of the stage (torchxrayvision: 0.5 and "
            "1 / 2048).",
            where=path,
        )
    return np.broadcast_to(np.float32(values), channels)


def to_grey(
    variables: dict[str, Any],
    network: type[Network],
    mean: np.ndarray,
    deviation: np.ndarray,
    path: Path,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Folds the colour channels of the first layer into one, in place.

    With kernel W_c, sum_c W_c (x - m_c) / s_c = V (x - m) / s + b for a grey image x, where
    V = sum_c W_c s / s_c, m and s are the means of m_c and s_c, and the constant
    b = sum_c W_c (m - m_c) / s_c, summed over the kernel, goes into the layer's bias,
    or into the running mean of the norm after it. At the border, padded zeros stand for
    x = m instead of x = m_c, so windows that extend past it differ.

    Returns:
      Mean and standard deviation `[1]`, and a sentence on the accuracy.

    Raises:
      UserError: The layer has no bias, and no running mean after it takes the constant.
    """
    first = variables["params"][network.FIRST_LAYER]
    kernel = first["kernel"].astype(np.float64)
    centre, width = mean.mean(dtype=np.float64), deviation.mean(dtype=np.float64)
    factor = (width / deviation)[:, None]
    taps = (kernel * ((centre - mean) / deviation)[:, None]).sum(2)
    constant = taps.sum((0, 1))
    first["kernel"] = transfers.rgb_to_grey(kernel * factor, ()).astype(np.float32)
    if "bias" in first:
        first["bias"] = (first["bias"] + constant).astype(np.float32)
    else:
        norm = network.FIRST_LAYER.replace("conv", "norm")
        statistics = variables.get("batch_stats", {}).get(norm)
        if statistics is None:
            raise UserError.at(
                path,
                f"three input channels of {network.FIRST_LAYER} cannot be folded into "
                "one, because no batch normalisation follows: set config.model.channels "
                "to 3.",
            )
        statistics["mean"] = (statistics["mean"] - constant).astype(np.float32)
    note = (
        f"{network.FIRST_LAYER}: three input channels folded into one, exact for grey "
        "images except in windows that extend past the border"
    )
    return np.float32([centre]), np.float32([width]), note


def to_rgb(
    variables: dict[str, Any],
    network: type[Network],
    mean: np.ndarray,
    deviation: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Spreads the single input channel of the first layer over three, in place.

    Returns:
      Mean and standard deviation `[3]`, and a sentence on the accuracy.
    """
    first = variables["params"][network.FIRST_LAYER]
    first["kernel"] = transfers.grey_to_rgb(first["kernel"], ())
    note = (
        f"{network.FIRST_LAYER}: one input channel spread over three, exact for three "
        "equal channels"
    )
    return np.repeat(mean, 3), np.repeat(deviation, 3), note


def complete(weights: Weights, model: ModelConfig) -> dict[str, Any]:
    """Returns variables of the whole network, with fresh ones where the file lacks them.

    Dense layers with another shape in the file are fresh as well.
    """
    module = steps.build_model(model, weights.num_classes, None)
    fresh = models.init(module, jax.random.key(0), model.image_size, model.channels)
    found = traverse_util.flatten_dict(weights.variables)
    whole = {
        place: found[place]
        if place in found and found[place].shape == value.shape
        else np.asarray(value)
        for place, value in traverse_util.flatten_dict(dict(fresh)).items()
    }
    return traverse_util.unflatten_dict(whole)


def identity(model: ModelConfig, weights: Weights) -> str:
    """Returns a digest of everything that determines an imported stage, except its path."""
    return digest(
        "imported", weights.fingerprint, as_json(model), weights.mean, weights.deviation
    )


def lineage(weights: Weights) -> dict[str, Any]:
    """Returns the lineage of an imported stage run after `artifacts.origin`."""
    placed = weights.placed
    return {
        "data": {
            "name": weights.path.name,
            "fingerprint": weights.fingerprint,
            "class_names": list(weights.class_names),
            "examples": {},
            "mean": weights.mean.tolist(),
            "deviation": weights.deviation.tolist(),
        },
        "imported": {
            "file": weights.path.name,
            "sha256": weights.fingerprint,
            "names": placed.names,
            "unused": list(placed.unused),
            "missing": list(placed.missing),
            "licence": weights.stated.licence,
            "started_from": list(weights.stated.started_from),
            "notes": list(weights.notes),
        },
        "history": [],
        "scores": {},
        "seconds": None,
        "versions": versions(),
    }

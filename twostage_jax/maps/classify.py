"""Class maps of a series: sliding windows, classified, and averaged per pixel.

Windows lie on a grid over the network's input, which may be a resampled slice; maps have
the pixels of the original slice. The axes are separable, so the average over all windows
is two matrix products.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.ct import patches
from twostage_jax.ct.dicom import AIR_HU
from twostage_jax.errors import UserError
from twostage_jax.study.artifacts import Trained
from twostage_jax.train import checkpoint, novelty, steps
from twostage_jax.train.parallel import replicate

# Windows with less lung than this show mostly tissue that training patches lack.
LEAST_LUNG = 0.5
# Windows per call of the network, over all accelerators, and least windows of each; windows
# per call on a core, whose cache the values of 256 exceed; slices on the devices at a time.
BATCH, LEAST_BATCH, CORE_BATCH, SLAB = 512, 64, 128, 16
# Maps are stored as bytes: 0 is unclassified, and one value marks lung that differs from
# the training images.
MOST_CLASSES = 254


@dataclasses.dataclass(frozen=True)
class How:
    """Settings with which a model is applied to series.

    Attributes:
      stride: Distance between neighbouring windows, pixels of the network's input.
      window: (centre, width) pairs in HU, flattened.
      spacing: Millimetres per pixel of the network's input; None = do not resample.
    """

    stride: int
    window: tuple[float, ...]
    spacing: float | None

    def settings(self) -> dict[str, str]:
        """Returns the settings as text."""
        return {
            "window HU (centre, width)": ", ".join(f"{v:g}" for v in self.window),
            "stride in pixels": str(self.stride),
            "mm per pixel": f"{self.spacing:g}" if self.spacing else "as scanned",
        }

    def __str__(self) -> str:
        return "; ".join(f"{name}: {value}" for name, value in self.settings().items())


class Maps(NamedTuple):
    """Classes of a series and their probabilities.

    Attributes:
      probabilities: Class probabilities, `[K, Z, H, W]` uint8, 255 = certain; 0 outside
        the lungs.
      labels: 1 + index of the most probable class, 0 = none, `[Z, H, W]` uint8.
      windows: Number of classified windows.
      unlike: Classified pixels for which most windows, weighted like their
        probabilities, differ from the training images, `[Z, H, W]` bool; None if the
        stage run lacks a reference.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    windows: int
    unlike: np.ndarray | None

    @property
    def unlike_fraction(self) -> float | None:
        """Fraction of the classified lung that differs from the training images."""
        if self.unlike is None:
            return None
        return float(self.unlike.sum() / max(1, np.count_nonzero(self.labels)))


class Classifier:
    """The network of a stage run, or of several, applied to windows of slices in HU."""

    def __init__(self, run: Trained, window: tuple[float, ...]) -> None:
        """Loads the parameters and copies them to every device.

        Args:
          run: Stage run; the probabilities of its members are averaged.
          window: (centre, width) pairs in HU, flattened: one, or one per channel.

        Raises:
          UserError: The parameters cannot be read, there are too many classes, or
            several processes are running.
        """
        if jax.process_count() > 1:
            raise UserError("predict runs in a single process: start it only once.")
        self.run, self.classes = run, len(run.class_names)
        if self.classes > MOST_CLASSES:
            raise UserError.at(
                run.folder,
                f"the model has {self.classes} classes, but maps can store at most "
                f"{MOST_CLASSES}.",
            )
        self.size = run.model.image_size
        members = run.members or (run,)
        # Of an ensemble, the first network judges what is unlike the training images.
        self.reference = novelty.load(run.folder, members[0].hash)
        module = steps.build_model(run.model, self.classes, None)
        forward = functools.partial(
            steps.forward,
            model=module,
            network=run.model,
            normalise=run.normalise,
            window=window,
        )
        networks = [
            (
                checkpoint.load_network(
                    one.folder / "variables", module, self.size, run.model.channels
                ),
                np.asarray(one.mean, np.float32),
                np.asarray(one.deviation, np.float32),
            )
            for one in members
        ]
        known = self.reference and tuple(map(np.asarray, self.reference[:-1]))
        self._held = replicate((networks, known), jax.local_device_count())
        self._answer = jax.pmap(
            functools.partial(
                _answer,
                forward=forward,
                size=self.size,
            )
        )

    def start(
        self, slices: np.ndarray, corners: np.ndarray
    ) -> Callable[[], np.ndarray]:
        """Starts classifying windows asynchronously.

        The slices are copied to every device, which cuts the windows.

        Args:
          slices: Hounsfield units, `[Z, H, W]` int16.
          corners: Slice, first row and first column of each window, `[N, 3]` int.

        Returns:
          A function that waits for and returns the probabilities `[N, K]` float32; with
          a reference, a last column is 1 if a window differs from the training images,
          else 0. It raises a UserError if a probability is not finite.
        """
        devices = jax.local_device_count()
        each = max(-(-BATCH // devices), LEAST_BATCH)
        size = (CORE_BATCH if steps.on_cpu() else each) * devices
        padded = np.zeros((-(-len(corners) // size) * size, 3), np.int32)
        padded[: len(corners)] = corners
        stack = replicate(slices, devices)
        parts = []
        for batch in padded.reshape(-1, devices, size // devices, 3):
            parts.append(self._answer(self._held, stack, batch))
        columns = self.classes + (self.reference is not None)

        def wait() -> np.ndarray:
            host = [np.asarray(part).reshape(-1, columns) for part in parts]
            host = host or [np.zeros((0, columns))]
            found = np.concatenate(host)[: len(corners)].astype(np.float32)
            if not np.isfinite(found).all():
                raise UserError(
                    "The probabilities of the model are not finite. Are its parameters "
                    "finite? Train it again.",
                    where=self.run.folder,
                )
            return found

        return wait


def _answer(
    held: tuple,
    slices: jax.Array,
    corners: jax.Array,
    *,
    forward: Callable,
    size: int,
) -> jax.Array:
    """Returns the results of `Classifier.start` for the windows of this device.

    Args:
      held: Variables, mean and standard deviation of each network; the reference of
        `novelty`, or None.
      slices: Hounsfield units, `[Z, H, W]`.
      corners: Slice, first row and first column of each window, `[b, 3]`.
      forward: `steps.forward` with its settings.
      size: Side of a window, pixels.
    """
    networks, known = held

    def cut(corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(slices, corner, (1, size, size))[0, :, :, None]

    windows = jax.vmap(cut)(corners)
    answers = [forward(variables, windows, *scale) for variables, *scale in networks]
    probabilities = sum(answer for answer, _ in answers) / len(answers)
    features = answers[0][1]
    if known is None:
        return probabilities
    unlike = novelty.is_unlike(features, *known)
    return jnp.concatenate([probabilities, unlike[:, None]], axis=1)


def classify(
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing: tuple[float, float],
    classifier: Classifier,
    how: How,
) -> Maps:
    """Returns the maps of a series.

    Windows with at least half of their pixels in the lungs are classified; lung pixels
    outside all of these remain unclassified.

    Args:
      hu: Hounsfield units, `[Z, H, W]` int16.
      lungs: Lung mask, `[Z, H, W]` bool.
      spacing: Distance between rows and between columns, mm.
      classifier: Network of a stage run.
      how: Stride and resolution of the windows.

    Raises:
      UserError: The slices cannot be resampled to this resolution, or the network's
        probabilities are not finite.
    """
    grid = _grid(hu.shape[1:], spacing, classifier.size, how)
    made = Maps(
        np.zeros((classifier.classes, *hu.shape), np.uint8),
        np.zeros(hu.shape, np.uint8),
        0,
        None if classifier.reference is None else np.zeros(hu.shape, bool),
    )
    windows, waiting = 0, None
    # The device works on the next slab while the host averages this one.
    for first in range(0, len(hu), SLAB):
        part = slice(first, first + SLAB)
        slab, used = _slab(hu[part], lungs[part], grid, classifier.size)
        at = np.argwhere(used)
        corners = [at[:, 0], grid.rows[at[:, 1]], grid.columns[at[:, 2]]]
        started = first, used, classifier.start(slab, np.stack(corners, axis=1))
        windows += len(at)
        if waiting:
            _average(*waiting, lungs, grid, made)
        waiting = started
    _average(*waiting, lungs, grid, made)
    return made._replace(windows=windows)


def starts(length: int, size: int, stride: int) -> np.ndarray:
    """Returns the first pixels `[n]` of the windows along an axis.

    The last window ends at the end of the axis, so that windows cover every pixel.

    Raises:
      ValueError: A window is longer than the axis.
    """
    if size > length:
        raise ValueError(f"windows of {size} pixels on an axis of {length}")
    first = np.arange(0, length - size + 1, stride)
    return first if first[-1] == length - size else np.append(first, length - size)


def fractions_inside(
    mask: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int
) -> np.ndarray:
    """Returns the fraction of every window that lies in `mask`, `[R, C]` float.

    Args:
      mask: Mask, `[H, W]` bool.
      rows, columns: First pixels of the windows along each axis.
      size: Height and width of a window, pixels.
    """
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    strips = sums[rows + size] - sums[rows]
    return (strips[:, columns + size] - strips[:, columns]) / size**2


def weights(first: np.ndarray, size: int, length: int, shown: int) -> np.ndarray:
    """Returns the weight of each window at each pixel along an axis, `[shown, n]` float32.

    The weight falls linearly from the centre of a window to zero at its edges, so that
    maps are smooth and do not show the grid of the windows.

    Args:
      first: First pixels of the windows, `[n]`.
      size: Length of a window, pixels.
      length: Length of the axis of the windows, pixels.
      shown: Length of the same axis of the map, which may be finer or coarser.
    """
    centres = (np.arange(shown) + 0.5) * (length / shown)
    distance = np.abs(centres[:, None] - (first + size / 2)[None])
    return np.maximum(0, 1 - distance / (size / 2)).astype(np.float32)


def average(
    probabilities: np.ndarray, used: np.ndarray, down: np.ndarray, across: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean probabilities `[K, H, W]` float32, and where they are defined.

    Args:
      probabilities: Class probabilities of the windows, `[R, C, K]`; those of unused
        windows must be finite.
      used: Whether each window was classified, `[R, C]` bool.
      down: Weights along the rows, `[H, R]`; see `weights`.
      across: Weights along the columns, `[W, C]`.

    Returns:
      Probabilities, 0 outside all used windows, and the pixels inside, `[H, W]` bool.
    """
    counted = used.astype(np.float32)
    total = down @ counted @ across.T
    reached = total > 1e-6
    masked = np.moveaxis(probabilities * counted[..., None], -1, 0)
    sums = down @ masked.astype(np.float32) @ across.T
    return np.where(reached, sums / np.where(reached, total, 1), 0), reached


class Grid(NamedTuple):
    """Positions and weights of the windows of a slice.

    Attributes:
      shape: (rows, columns) of the slice at the network's resolution.
      rows, columns: First pixels of the windows along each axis, `[R]` and `[C]`.
      down, across: Weights of the windows at each original pixel of the slice, `[H, R]`
        and `[W, C]`; see `weights`.
    """

    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    down: np.ndarray
    across: np.ndarray


def _grid(
    shape: tuple[int, int], spacing: tuple[float, float], size: int, how: How
) -> Grid:
    seen = shape
    if how.spacing:
        seen = patches.resampled_shape(shape, spacing, how.spacing, Path("a slice"))
    # A slice smaller than a window is padded.
    first = [starts(max(n, size), size, how.stride) for n in seen]
    counted = [
        weights(start, size, length, shown)
        for start, length, shown in zip(first, seen, shape, strict=True)
    ]
    return Grid(seen, *first, *counted)


def _slab(
    hu: np.ndarray, lungs: np.ndarray, grid: Grid, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns slices at the network's resolution, and a mask of windows to classify.

    Both have `SLAB` slices, so that programs compile only once: `[SLAB, h, w]` int16
    and `[SLAB, R, C]` bool.
    """
    high, wide = grid.shape
    shape = max(high, size), max(wide, size)
    slab = np.full((SLAB, *shape), AIR_HU, np.int16)
    used = np.zeros((SLAB, len(grid.rows), len(grid.columns)), bool)
    for z in np.flatnonzero(lungs.any((1, 2))):
        image, inside = hu[z], np.zeros(shape, bool)
        if image.shape != grid.shape:
            image = np.rint(patches.resample_image(image, grid.shape))
        slab[z, :high, :wide] = image
        inside[:high, :wide] = patches.resample_mask(lungs[z], grid.shape)
        used[z] = fractions_inside(inside, grid.rows, grid.columns, size) >= LEAST_LUNG
    return slab, used


def _average(
    first: int,
    used: np.ndarray,
    wait: Callable[[], np.ndarray],
    lungs: np.ndarray,
    grid: Grid,
    made: Maps,
) -> None:
    """Writes the averages of a slab's windows into `made`, within the lungs' box."""
    classes, found = len(made.probabilities), wait()
    windows = np.zeros((*used.shape, found.shape[1]), np.float32)
    windows[used] = found
    for i in np.flatnonzero(used.any((1, 2))):
        inside = lungs[first + i]
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mean, reached = average(
            windows[i], used[i], grid.down[box[0]], grid.across[box[1]]
        )
        reached &= inside[box]
        probabilities, unlike = mean[:classes], mean[classes:]
        made.probabilities[:, first + i][:, *box] = np.rint(
            255 * probabilities * reached
        )
        made.labels[first + i][box] = np.where(reached, 1 + probabilities.argmax(0), 0)
        if made.unlike is not None:
            made.unlike[first + i][box] = reached & (unlike[0] > 0.5)

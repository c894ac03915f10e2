"""Cuts patches from slice images, each with a lung mask and a label mask.

    <path>/slices.csv            columns patient, slice
          /ct/<slice>            8-bit grey images, or DICOM files
          /lungs/<slice>         0 outside the lungs
          /infection/<slice>     0 outside all regions, otherwise the value of the region

Masks are PNG, TIFF or NumPy files.
"""

import functools
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from twostage_jax import io
from twostage_jax.ct import patches
from twostage_jax.ct.decode import MAX_SIDE, refusing
from twostage_jax.ct.dicom import Header, hashed, patient_hash, read_slice
from twostage_jax.ct.patches import Cut, Place
from twostage_jax.ct.regions import masks
from twostage_jax.ct.regions.masks import foreground
from twostage_jax.data import cohort, image_files, spelling
from twostage_jax.data.cohort import NO_PATCH
from twostage_jax.data.dataset import Example, Made, Recipe, digest, remarks
from twostage_jax.errors import Notes, UserError, require
from twostage_jax.folders import below, stamps

# Bump when the same files and settings give different patches or facts.
VERSION = 5
TOO_LITTLE_LUNG = "too little of the patch is lung"
Task = tuple[str, tuple[str, ...]]


def recipe(
    *,
    path: str,
    size: int = 32,
    channels: int = 1,
    images: str = "ct",
    lungs: str = "lungs",
    labels: str = "infection",
    csv: str = "slices.csv",
    classes: str = "healthy,infected",
    stride: int = 8,
    coverage: float = 0.5,
    lung_coverage: float = 0.75,
    per_class: int = 200,
    salt: str = "",
    seed: int = 0,
) -> Recipe:
    """Returns the recipe of the patches below `path`, one task per patient.

    Args:
      path: Folder with the table and the folders of images and masks.
      size: Height and width of a patch, pixels.
      channels: Ignored: slices have one channel.
      images: Folder of slices: 8-bit grey images (uint8 patches), or DICOM files
        (int16 patches in HU).
      lungs: Folder of lung masks, 0 or not 0; empty without masks, and then without a
        healthy class.
      labels: Folder of label masks.
      csv: Table with the columns `patient` and `slice`, the name of a file.
      classes: Names of the classes of mask values 1, 2, ...; with lung masks, preceded by
        the name of unlabelled lung. If only one class is labelled, all values except 0
        mean this class, apart from artefacts of JPEG or resizing at edges (see
        `ct.regions.masks.foreground`).
      stride: Distance between neighbouring patches, pixels.
      coverage: Smallest fraction of a patch that a labelled class must cover.
      lung_coverage: Smallest fraction of a patch of any class that must be lung or
        labelled, if there are lung masks; healthy patches must not contain labelled
        pixels.
      per_class: Largest number of patches per class and patient, drawn at random; 0 =
        all.
      salt: Secret mixed into the patients' hashes.
      seed: Seed of the random draw.

    Raises:
      UserError: A setting is impossible, or a file is missing.
    """
    root = below(Path(path), "path")
    cut = Cut(size, stride, coverage, per_class=per_class, seed=seed)
    patches.check(cut)
    possible = 0 < lung_coverage <= 1
    require(possible, "lung_coverage", lung_coverage, "above 0 and at most 1")
    class_names = io.split_names(classes, "classes")
    require(len(class_names) > 1, "classes", classes, "two names or more")
    folders = {"images": images, "labels": labels, "lungs": lungs}
    for setting, name in folders.items():
        if name:
            below(root / name, setting)
    tasks = _read_table(root / csv)
    notes = spelling.group_notes((patient for patient, _ in tasks), csv)
    if len({_is_dicom(s) for _, slices in tasks for s in slices}) > 1:
        raise UserError.at(
            root / csv, "names both DICOM files and images: use one kind only."
        )
    read = [root / csv]
    for _, slices in tasks:
        for name in slices:
            read.append(io.on_disk(root / images / name))
            read += [_mask(root / f, name) for f in (labels, lungs) if f]
    settings = {
        "class_names": class_names,
        **folders,
        "size": size,
        "stride": stride,
        "coverage": coverage,
        "lung_coverage": lung_coverage,
        "per_class": per_class,
        "salt": salt,
        "seed": seed,
    }
    return Recipe(
        name="slices",
        kind="ct",
        class_names=class_names,
        key=digest("slices", VERSION, class_names, settings, stamps(root, read)),
        tasks=tasks,
        make=functools.partial(
            _patient_examples,
            root=root,
            class_names=class_names,
            **folders,
            cut=cut,
            lung_coverage=lung_coverage,
            salt=salt,
        ),
        remarks=functools.partial(remarks, tuple(notes)),
    )


def read_grey(path: Path) -> np.ndarray:
    """Returns an 8-bit grey image, `[H, W]` uint8; three equal channels count as grey.

    Raises:
      UserError: The file cannot be decoded, is not an 8-bit grey image, or has an
        orientation; see `_check_upright`.
    """
    # Not opened by name, see `image_files`.
    with refusing(path, "an image"), path.open("rb") as file:
        with Image.open(file, formats=("PNG", "JPEG", "TIFF", "BMP")) as image:
            if max(image.size) > MAX_SIDE:
                raise UserError(f"{image.size} is larger than any CT slice.")
            if image.mode not in ("L", "RGB"):
                raise UserError(
                    f"has mode {image.mode}: an 8-bit grey image is required."
                )
            _check_upright(image)
            pixels = np.array(image)
        if pixels.ndim == 3:
            if np.ptp(pixels, axis=2).any():
                raise UserError("is in colour: a grey image is required.")
            pixels = pixels[..., 0]
        return pixels


def _patient_examples(
    task: Task,
    *,
    root: Path,
    class_names: tuple[str, ...],
    images: str,
    labels: str,
    lungs: str,
    cut: Cut,
    lung_coverage: float,
    salt: str,
) -> Made:
    """Returns the patches of one patient, `[size, size, 1]`."""
    (patient, names), classes, size = task, len(class_names), cut.size
    group = patient_hash(patient, salt)
    examples = Made()
    places, shapes, dropped = [], [], Counter()
    for number, name in enumerate(names):
        lung_mask = _mask(root / lungs, name) if lungs else None
        label_map = _label_map(
            _mask(root / labels, name), lung_mask, classes, examples.notes
        )
        shapes.append(label_map.shape)
        patches.check_size(label_map.shape, size, root / images / name)
        cuts, coverages = patches.covered(
            label_map,
            size=size,
            stride=cut.stride,
            coverage=[lung_coverage if lungs else cut.coverage]
            + [cut.coverage] * (classes - 1),
            pure=(0,) if lungs else (),
        )
        for (row, column, label), covered in zip(
            cuts.tolist(), coverages.tolist(), strict=True
        ):
            patch = label_map[row : row + size, column : column + size]
            # The same rule for all classes, so that the fraction of lung does not
            # distinguish them.
            if lungs and np.count_nonzero(patch) / size**2 < lung_coverage:
                dropped[TOO_LITTLE_LUNG, label] += 1
            else:
                places.append(Place(number, row, column, label, covered, 0))
    by_slice, headers = defaultdict(list), []
    for place in patches.chosen(places, cut, group, dropped):
        by_slice[place.slice].append(place)
    for number, own in by_slice.items():
        path = io.on_disk(root / images / names[number])
        header, pixels = _read_image(path, shapes[number])
        headers += [header] if header else []
        prefix = f"{group}/{hashed('slice', names[number], salt)}"
        for _, row, column, label, *_ in own:
            patch = pixels[row : row + size, column : column + size, None].copy()
            uid = f"{prefix}/r{row:04d}c{column:04d}"
            examples.append(Example(id=uid, image=patch, label=label, group=group))
    counts = [
        ("slices", len(names) - len(by_slice), NO_PATCH),
        ("slices", len(by_slice), ""),
    ]
    examples.facts["flow"] = cohort.patient_flow(
        group, counts, examples, dropped, class_names
    )
    if headers:
        examples.facts["acquisition"] = cohort.acquisition(headers, group, salt)
    return examples


def _read_table(path: Path) -> tuple[Task, ...]:
    """Returns (patient, file names of the slices) sorted by patient."""
    by_patient, seen = defaultdict(list), set()
    for line, row in io.read(path, ("patient", "slice")):
        patient, name = row["patient"], row["slice"]
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise UserError.at(path, f"'{name}' leads out of the folder.", line=line)
        if name in seen:
            raise UserError.at(path, f"slice '{name}' is named twice.", line=line)
        seen.add(name)
        by_patient[patient].append(name)
    if not by_patient:
        raise UserError.at(path, "the table is empty (columns patient, slice).")
    return tuple((p, tuple(names)) for p, names in sorted(by_patient.items()))


def _is_dicom(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (".dcm", ".dicom", "")


def _mask(folder: Path, name: str) -> Path:
    """Returns the path of a slice's mask, which for DICOM and JPEG is `<stem>.png`."""
    path = folder / name
    return io.on_disk(
        path if path.suffix.lower() in masks.MASK_SUFFIXES else path.with_suffix(".png")
    )


def _label_map(
    path: Path, lung_path: Path | None, classes: int, notes: Notes
) -> np.ndarray:
    """Returns a label mask `[H, W]` int: 0, or 1 + class index.

    With a lung mask, class 0 is unlabelled lung.
    """
    mask = np.asarray(_read_mask(path))
    labelled = classes if lung_path is None else classes - 1
    if labelled == 1:
        mask = foreground(mask, path, notes, "label masks")
    if mask.ndim != 2 or mask.min() < 0 or mask.max() > labelled:
        raise UserError.at(
            path,
            f"one mask with values 0 to {labelled} is required, not "
            f"{list(mask.shape)} with {mask.min()} to {mask.max()}: name a class for "
            "each value in the setting 'classes'.",
        )
    mask = mask.astype(np.int64)
    if lung_path is None:
        return mask
    lungs = _read_mask(lung_path)
    if lungs.shape != mask.shape:
        raise UserError.at(
            lung_path,
            f"the lung mask has shape {list(lungs.shape)}, but the label mask "
            f"{list(mask.shape)}.",
        )
    inside = foreground(lungs, lung_path, notes, "lung masks")
    return np.where(mask > 0, mask + 1, inside.astype(np.int64))


def _read_mask(path: Path) -> np.ndarray:
    if path.suffix.lower() != ".npy":
        with refusing(path, "an image"), Image.open(path) as image:
            _check_upright(image)
    return masks.read_mask(path)


def _check_upright(image: Image.Image) -> None:
    """Raises a UserError for a slice or a mask with an EXIF or TIFF orientation.

    Some programs rotate such images and others do not, so that slice and mask may not fit.
    """
    if image_files.is_turned(image):
        raise UserError(
            "has an EXIF or TIFF orientation, which not all programs follow: save the "
            "slice and its masks upright and without it."
        )


def _read_image(path: Path, shape: tuple[int, int]) -> tuple[Header | None, np.ndarray]:
    """Returns the header of a slice, None unless it is DICOM, and its pixels `[H, W]`."""
    dicom = _is_dicom(path.name)
    header, pixels = read_slice(path) if dicom else (None, read_grey(path))
    if pixels.shape != shape:
        raise UserError.at(
            path,
            f"the slice has shape {list(pixels.shape)}, but its mask {list(shape)}.",
        )
    return header, pixels

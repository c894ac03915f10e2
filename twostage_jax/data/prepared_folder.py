"""Writes the output folder of `python -m twostage_jax.prepare`, and reads it in a stage.

`write` adds tables, a preview and a description to the patches; `recipe` reads such a
folder as the data of a stage.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from twostage_jax import folders, io
from twostage_jax.ct import privacy
from twostage_jax.ct.dicom import LUNG_WINDOW, hashed, window
from twostage_jax.ct.series import Series
from twostage_jax.data.dataset import Dataset, Made, Recipe
from twostage_jax.errors import UserError
from twostage_jax.io import inert
from twostage_jax.notices import NOTICE

# Description of the set, written last, so that it marks a complete folder.
DESCRIPTION = "dataset.json"
COLUMNS = (
    "id",
    "patient",
    "series",
    "slice",
    "slice_number",
    "row",
    "column",
    "row_mm",
    "column_mm",
    "label",
    "coverage",
)
SERIES_COLUMNS = ("series", "patient", "slices", "step_mm", "notes", "remarks")
# Largest number of notes on skipped files and on peculiar series.
MOST_REASONS, MOST_ODD = 8, 8
PREVIEW_COLUMNS, PREVIEW_ROWS = 12, 2


def recipe(*, path: str, size: int = 0, channels: int = 1) -> Recipe:
    """Returns the recipe of a prepared set, which is neither made nor copied.

    Args:
      path: Folder given to `prepare` as --out.
      size: Smallest height and width required, pixels; larger images are cropped later.
      channels: Ignored: the images determine the number of channels.

    Raises:
      UserError: The folder is not a prepared set, or its images are too small.
    """
    root = folders.below(Path(path), "path")
    try:
        made = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
        name, kind, key = (str(made[field]) for field in ("name", "kind", "key"))
        class_names = tuple(str(label) for label in made["class_names"])
        patch = int(made["patch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError.at(
            root,
            f"not a prepared set: {DESCRIPTION} cannot be read ({error}). Make it "
            "with python -m twostage_jax.prepare.",
        ) from error
    if patch < size:
        raise UserError.at(
            root,
            f"its patches have {patch} pixels, but {size} are required: prepare it "
            f"again with --patch={size} or more.",
        )
    return Recipe(
        name=name,
        kind=kind,
        class_names=class_names,
        key=key,
        tasks=(),
        make=Made,
        prepared_in=root,
        side=patch,
    )


def spacing(root: Path, fingerprint: str) -> float | None:
    """Returns the mm per pixel that `prepare` resampled to; None = as scanned.

    Args:
      root: Output folder of `prepare`.
      fingerprint: Digest of the set that is expected there.

    Raises:
      ValueError: The folder is unreadable or holds another set.
    """
    path = root / DESCRIPTION
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        if made["fingerprint"] != fingerprint:
            raise ValueError("the set has changed")
        return made["settings"]["spacing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path}: the resolution of the patches is unknown ({error})"
        raise ValueError(message) from error


def write(
    out: Path,
    recipe: Recipe,
    made: Dataset,
    metadata: Mapping[str, Any],
    skipped: privacy.Hidden,
    series: Sequence[Mapping[str, str]],
) -> None:
    """Writes the tables, preview.png and, last, dataset.json.

    Args:
      out: Output folder of `prepare`.
      recipe: Recipe of `ct_patches`.
      made: Data set that the recipe made.
      metadata: Metadata of the prepared set (see `records.Collector`).
      skipped: (file, reason) of skipped files.
      series: Rows of `about_series`.
    """
    description = {
        "name": recipe.name,
        "kind": recipe.kind,
        "class_names": list(recipe.class_names),
        "key": recipe.key,
        "patch": int(made.images.shape[1]),
        "count": len(made),
        "fingerprint": made.fingerprint,
        "notice": NOTICE,
        "synthetic": made.synthetic,
        "settings": dataclasses.asdict(recipe.make.keywords["cut"]),
        # Pixels marked as two classes, and the positions of numbered masks.
        "facts": metadata.get("facts", {}),
    }
    io.write_csv(out / "patches.csv", COLUMNS, _rows(recipe, metadata))
    privacy.write_skipped(out, skipped)
    io.write_csv(out / "series.csv", SERIES_COLUMNS, series)
    with io.replacing(out / "preview.png") as path:
        preview(made).save(path)
    # Last: it marks the folder as complete.
    io.write_json(out / DESCRIPTION, description)


def about_series(
    series: Sequence[Series], salt: str, *, show_paths: bool
) -> list[dict[str, str]]:
    """Returns one row of `SERIES_COLUMNS` per series.

    Args:
      series: Series of the annotated patients.
      salt: Secret mixed into the hashes.
      show_paths: Whether to include file names, which may contain patients' names.
    """
    rows = []
    for one in series:
        notes = one.notes if show_paths else one.plain_notes
        values = (
            hashed("series", one.uid, salt),
            one.patient,
            str(len(one.headers)),
            "" if one.step is None else f"{one.step:.3f}",
            inert("; ".join(notes)),
            inert("; ".join(one.remarks)),
        )
        rows.append(dict(zip(SERIES_COLUMNS, values, strict=True)))
    return rows


def notes(
    skipped: privacy.Hidden, series: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    """Yields lines on skipped files and on peculiar series (rows of `about_series`)."""
    reasons = collections.Counter(why for _, why in skipped)
    for reason, count in reasons.most_common(MOST_REASONS):
        yield f"skipped, {count} files: {reason}"
    odd = [row for row in series if row["notes"] or row["remarks"]]
    for row in odd[:MOST_ODD]:
        text = "; ".join(filter(None, (row["notes"], row["remarks"])))
        yield f"odd, {row['series']}: {text[:300]}"
    if len(odd) > MOST_ODD:
        yield f"odd, {len(odd) - MOST_ODD} further series: see series.csv of `prepare`"


def preview(made: Dataset) -> Image.Image:
    """Returns an image of some patches of each class in the lung window."""
    size, scale = made.images.shape[1], max(1, round(64 / made.images.shape[1]))
    side, margin = size * scale + 2, 14
    high = PREVIEW_ROWS * side + margin
    sheet = Image.new("L", (PREVIEW_COLUMNS * side, high * made.num_classes), 255)
    draw = ImageDraw.Draw(sheet)
    rng = np.random.default_rng(0)
    for label, name in enumerate(made.class_names):
        members = np.flatnonzero(made.labels == label)
        count = min(len(members), PREVIEW_COLUMNS * PREVIEW_ROWS)
        text = f"{name[:60]} ({len(members)})".encode("latin-1", "replace")
        draw.text((2, label * high + 1), text.decode("latin-1"), fill=0)
        chosen = np.sort(rng.choice(members, count, replace=False))
        for i, hu in enumerate(made.images[chosen]):
            grey = np.rint(255 * window(hu[..., 0], *LUNG_WINDOW)).astype(np.uint8)
            picture = Image.fromarray(grey.repeat(scale, 0).repeat(scale, 1))
            row, column = divmod(i, PREVIEW_COLUMNS)
            at = column * side + 1, label * high + margin + row * side
            sheet.paste(picture, at)
    return sheet


def _rows(recipe: Recipe, metadata: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of patches.csv, sorted by id."""
    columns = ("ids", "groups", "labels", "details")
    records = zip(*(metadata[column] for column in columns), strict=True)
    for name, patient, label, details in sorted(records, key=lambda r: r[0]):
        if name:
            label = inert(recipe.class_names[int(label)])
            yield {"id": name, "patient": patient, "label": label, **details}

"""Masks of one class with several values due to JPEG, resizing or several labels."""

import io

import numpy as np
import pytest
from basics import refused_at
from PIL import Image

from twostage_jax.ct.regions.masks import CUT, SEVERAL, foreground
from twostage_jax.data import slices
from twostage_jax.data.store import prepare
from twostage_jax.errors import Notes

SIDE = 96
ROWS, COLUMNS = np.indices((SIDE, SIDE))


def disc(radius=22, centre=(50, 45), value=255):
    inside = np.hypot(ROWS - centre[0], COLUMNS - centre[1]) < radius
    return (inside * value).astype(np.uint8)


def jpeg(pixels, quality=60):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def resized(pixels, factor, resample):
    side = round(SIDE * factor)
    return np.array(Image.fromarray(pixels).resize((side, side), resample))


def marked(mask):
    """Returns the pixels marked by a mask, and the notes on it."""
    notes = Notes()
    inside = foreground(mask, "mask.png", notes)
    return inside, {note for _, note in notes if note}


@pytest.mark.parametrize("value", [1, 3, 100, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_zero_and_one_other_value(value, dtype):
    inside, notes = marked(disc(value=value).astype(dtype))
    np.testing.assert_array_equal(inside, disc() > 0)
    assert inside.dtype == bool and notes == set()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_masks_of_nothing_or_everything(value):
    inside, notes = marked(np.full((8, 8), value, np.uint8))
    assert (inside == (value > 0)).all() and notes == set()
    inside, notes = marked(np.full((8, 8), bool(value)))
    assert (inside == (value > 0)).all() and notes == set()


@pytest.mark.parametrize("quality", [30, 60, 90, 100])
@pytest.mark.parametrize(
    "truth",
    [disc(), disc(3), disc(value=200), disc(60), np.maximum(disc(9), disc(5, (9, 80)))],
    ids=["disc", "small", "200", "large", "two"],
)
def test_ringing_of_jpeg_does_not_count(truth, quality):
    noisy = jpeg(truth, quality)
    inside, notes = marked(noisy)
    assert np.count_nonzero(inside != (truth > 0)) <= 1
    assert notes == ({CUT} if len(np.unique(noisy)) > 2 else set())


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.5, 2, 3])
@pytest.mark.parametrize("name", ["BILINEAR", "BICUBIC", "LANCZOS", "BOX"])
def test_soft_edges_of_resizing_are_cut_at_half(name, factor):
    soft = resized(disc(), factor, Image.Resampling[name])
    inside, notes = marked(soft)
    area = np.count_nonzero(disc()) * factor**2
    assert abs(np.count_nonzero(inside) - area) < 0.03 * area
    assert notes == ({CUT} if len(np.unique(soft)) > 2 else set())


def test_jpeg_that_was_enlarged_afterwards():
    soft = resized(jpeg(disc()), 2, Image.Resampling.BILINEAR)
    wanted = resized(disc(), 2, Image.Resampling.BILINEAR) >= 128
    assert np.count_nonzero(marked(soft)[0] != wanted) <= 4


@pytest.mark.parametrize(
    "values", [(1, 2), (1, 2, 3), (5, 9, 15), (127, 255), (85, 170)]
)
def test_all_labels_count_and_are_noted(values):
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(values):
        labels[disc(9, (15 + 30 * number, 40)) > 0] = value
    inside, notes = marked(labels)
    np.testing.assert_array_equal(inside, labels > 0)
    assert notes == {SEVERAL}


def probabilities():
    return np.clip(255 - 4 * np.hypot(ROWS - 50, COLUMNS - 45), 0, 255).astype(np.uint8)


def with_void():
    labels = disc(value=1)
    labels[80:] = 255
    return labels


def photograph():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)


def negative():
    return disc(value=1).astype(np.int16) - 1


@pytest.mark.parametrize("make", [probabilities, with_void, photograph, negative])
def test_other_values_are_refused(make):
    with refused_at("mask.png"):
        marked(make())


def test_stacks_are_examined_slice_by_slice():
    stack = np.stack([jpeg(disc(5 + 5 * i)) for i in range(4)])
    wanted = np.stack([disc(5 + 5 * i) > 0 for i in range(4)])
    assert np.count_nonzero(marked(stack)[0] != wanted) <= 2


def write_set(root, labels, lungs):
    """Writes two patients with one slice each."""
    for folder in ("ct", "lungs", "infection"):
        (root / folder).mkdir(parents=True)
    ct = np.random.default_rng(0).integers(20, 60, (SIDE, SIDE)).astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(ct).save(root / "ct" / name)
        Image.fromarray(lungs).save(root / "lungs" / name)
        Image.fromarray(labels).save(root / "infection" / name)
    (root / "slices.csv").write_text("patient,slice\nP1,a.png\nP2,b.png\n")
    return root


def cut(root, tmp_path, **options):
    recipe = slices.recipe(path=str(root), size=8, stride=4, per_class=0, **options)
    return prepare(recipe, tmp_path / "prepared", workers=1)


LUNGS = disc(44, (48, 48))


def test_patches_of_noisy_masks_are_those_of_clean_ones(tmp_path):
    clean = cut(write_set(tmp_path / "clean", disc(), LUNGS), tmp_path)
    noisy = cut(write_set(tmp_path / "noisy", jpeg(disc()), jpeg(LUNGS)), tmp_path)
    assert noisy.ids.tolist() == clean.ids.tolist()
    np.testing.assert_array_equal(noisy.labels, clean.labels)
    np.testing.assert_array_equal(noisy.images, clean.images)
    assert clean.notes == ()
    assert set(noisy.notes) == {
        f"2 of 2 label masks {CUT}",
        f"2 of 2 lung masks {CUT}",
    }


@pytest.mark.parametrize("folder", ["infection", "lungs"])
def test_unusable_mask_is_refused(tmp_path, folder):
    root = write_set(tmp_path / "in", disc(), LUNGS)
    path = root / folder / "b.png"
    Image.fromarray(probabilities()).save(path)
    with refused_at(path):
        cut(root, tmp_path)


def test_masks_of_several_classes_need_exact_values(tmp_path):
    labels = disc(12, (30, 40), 1) + disc(12, (70, 40), 2)
    options = {"classes": "healthy,ggo,consolidation"}
    made = cut(write_set(tmp_path / "in", labels, LUNGS), tmp_path, **options)
    assert set(made.labels.tolist()) == {0, 1, 2} and made.notes == ()
    path = tmp_path / "in" / "infection" / "b.png"
    Image.fromarray(jpeg(127 * labels)).save(path)
    with refused_at(path):
        cut(tmp_path / "in", tmp_path, **options)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_masks_in_colour_or_with_alpha_are_refused(tmp_path, mode):
    root = write_set(tmp_path / "in", disc(), LUNGS)
    path = root / "infection" / "b.png"
    ending = ".tif" if mode == "F" else ".png"
    file = io.BytesIO()
    Image.fromarray(disc()).convert(mode).save(
        file, {".tif": "TIFF"}.get(ending, "PNG")
    )
    path.write_bytes(file.getvalue())
    with refused_at(path):
        cut(root, tmp_path)

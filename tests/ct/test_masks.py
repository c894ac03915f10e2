"""Mask files, contours, and the slices that they belong to."""

from dataclasses import replace

import numpy as np
import pytest
from basics import refused_at
from ct_files import SERIES, write_ct
from PIL import Image

from twostage_jax.ct import annotations
from twostage_jax.ct.regions import masks as mask_files
from twostage_jax.ct.regions import medgift
from twostage_jax.ct.regions.base import Query, draw_regions, fill_contour, merge
from twostage_jax.ct.series import scan

MASK = np.array([[0, 1, 2], [0, 0, 1]], np.uint8)


def three_slices(folder):
    """Writes slices of 2 x 3 at z = 0, 5, 10 mm whose names are in another order."""
    (folder / "rois").mkdir(parents=True)
    for z, name in [(0, "c"), (5, "a"), (10, "b")]:
        write_ct(
            folder / name,
            np.zeros((2, 3), np.int16),
            uid=z + 1,
            ImagePositionPatient=[0, 0, z],
        )
    return scan(folder)[0]


def load(path, headers):
    return mask_files.load(Query(path, headers))


def save_mask(path, mask=MASK):
    if path.suffix == ".npy":
        np.save(path, mask)
    else:
        Image.fromarray(mask).save(path)


def headers_key(headers, z):
    (found,) = [header.key for header in headers if header.position[2] == z]
    return found


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("stem", [f"{SERIES}.6", "2", "slice-0002"])
def test_mask_is_found_by_uid_or_by_slice_order(tmp_path, suffix, stem):
    headers = three_slices(tmp_path)
    save_mask(tmp_path / "rois" / f"{stem}{suffix}")
    masks, placed = load(tmp_path / "rois" / f"{stem}{suffix}", headers)
    (by_key,) = masks.items()
    assert by_key[0] == headers_key(headers, 5)
    assert by_key[1]().tolist() == MASK.tolist()
    assert (placed is None) == (stem == f"{SERIES}.6")


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
@pytest.mark.parametrize("stem", ["all", SERIES])
def test_one_file_may_hold_the_masks_of_all_slices(tmp_path, suffix, stem):
    headers = three_slices(tmp_path)
    other = [replace(h, series_uid="1.2.3", sop_uid=f"{h.sop_uid}.9") for h in headers]
    stack = np.stack([MASK * 0, MASK, MASK * 2])
    path = tmp_path / "rois" / f"{stem}{suffix}"
    if suffix == ".npy":
        np.save(path, stack)
    else:
        first, *rest = [Image.fromarray(page) for page in stack]
        first.save(path, save_all=True, append_images=rest)
    if stem == "all":
        with refused_at(path):
            load(path, headers + other)
        other = []
    masks, placed = load(path, headers + other)
    for number, z in enumerate([0, 5, 10]):
        mask = masks[headers_key(headers, z)]()
        assert mask.tolist() == stack[number].tolist()
    assert (placed.number, placed.header.position[2], placed.masks) == (1, 0, 3)


@pytest.mark.parametrize("heights", [(0, 1, 3, 4), (0, 1, 1, 2), (0, 10, 30)])
def test_numbered_masks_are_refused_if_the_order_of_slices_is_uncertain(
    tmp_path, heights
):
    for number, z in enumerate(heights, start=1):
        tags = {"ImagePositionPatient": [0, 0, z]}
        write_ct(
            tmp_path / "abcd"[number - 1],
            np.zeros((2, 3), np.int16),
            uid=number,
            **tags,
        )
    headers = scan(tmp_path)[0]
    (tmp_path / "rois").mkdir()
    for name in ("2.png", "all.npy", f"{SERIES}.2.png"):
        stack = np.stack([MASK] * len(heights)) if name == "all.npy" else MASK
        save_mask(tmp_path / "rois" / name, stack)
        if name.startswith(SERIES):
            masks, _ = load(tmp_path / "rois" / name, headers)
            (header,) = [h for h in headers if h.key in masks]
            assert header.sop_uid == name[:-4]
        else:
            with refused_at(tmp_path / "rois" / name):
                load(tmp_path / "rois" / name, headers)


def test_two_masks_of_one_slice_and_a_wrong_shape_are_refused(tmp_path):
    headers = three_slices(tmp_path)
    path = tmp_path / "rois" / "1.png"
    save_mask(path, MASK[:, :2])
    found, _ = load(path, headers)
    with refused_at(path):
        found[headers_key(headers, 0)]()
    other = tmp_path / "rois" / f"{SERIES}.1.png"
    save_mask(other)
    files = [
        annotations.RoiFile(name, mask_files.FORMAT, tmp_path) for name in (path, other)
    ]
    with refused_at(other):
        annotations.numbered_masks(files, headers)


def test_broken_and_unsuitable_masks_are_refused(tmp_path):
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no image")
    colour = tmp_path / "b.png"
    Image.new("RGB", (2, 2)).save(colour)
    floats = tmp_path / "c.npy"
    np.save(floats, np.zeros((2, 2)))
    pickled = tmp_path / "d.npy"
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    for path in (broken, colour, floats, pickled):
        with refused_at(path):
            mask_files.read_mask(path)


def save_indexed(path, indices, palette):
    image = Image.fromarray(np.uint8(indices), mode="P")
    image.putpalette(np.uint8(palette).ravel().tolist(), "RGB")
    image.save(path)
    return mask_files.read_mask(path)


def test_grey_levels_of_a_palette_count_if_its_indices_are_not_in_their_order(tmp_path):
    """As of programs that put the most frequent or the lightest colour first."""
    shown = np.zeros((4, 4), np.uint8)
    shown[1:, 1:] = 255
    Image.fromarray(shown).quantize(2).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(mask_files.read_mask(tmp_path / "a.png"), shown)
    found = save_indexed(tmp_path / "b.png", 1 - MASK // 2, [[9] * 3, [0] * 3])
    np.testing.assert_array_equal(found, [[0, 0, 9], [0, 0, 0]])


@pytest.mark.parametrize("other", [[[128, 0, 0], [0, 128, 0]], [[85] * 3, [255] * 3]])
def test_indices_of_a_palette_are_labels_if_only_0_is_black(tmp_path, other):
    found = save_indexed(tmp_path / "a.png", MASK, [[0, 0, 0], *other])
    np.testing.assert_array_equal(found, MASK)


def test_a_palette_of_colours_in_which_0_is_not_black_is_refused(tmp_path):
    with refused_at(tmp_path / "a.png"):
        save_indexed(tmp_path / "a.png", MASK, [[255] * 3, [255, 0, 0], [0] * 3])


def test_contour_marks_pixels_whose_centres_lie_inside():
    square = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]])
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(fill_contour(square, (5, 6)), expected)
    # A right triangle with legs of 4: row y contains the columns x < 4 - y.
    triangle = np.array([[-0.1, -0.1], [3.9, -0.1], [-0.1, 3.9]])
    found = fill_contour(triangle, (5, 5))
    assert found.sum(axis=1).tolist() == [4, 3, 2, 1, 0]
    # Contours are cut off at the border of the slice.
    big = np.array([[-9.0, -9.0], [99.0, -9.0], [99.0, 99.0], [-9.0, 99.0]])
    assert fill_contour(big, (3, 4)).all()


def test_pixels_of_two_classes_belong_to_neither_and_are_counted():
    def square(low, high):
        return np.array([[low, -1], [high, -1], [high, 9], [low, 9]], float)

    regions = [(0, square(-0.5, 2.5)), (1, square(1.5, 4.5)), (0, square(-0.5, 1.5))]
    labels = merge(draw_regions(regions, (1, 6)), (1, 6))
    assert labels.mask.tolist() == [[1, 1, 0, 2, 2, 0]]
    assert labels.marked == {0: 3, 1: 3}
    assert labels.overlaps == {(0, 1): 1}


def test_medgift_contours_come_in_pixels(tmp_path):
    path = tmp_path / "CT.txt"
    path.write_text(
        "SpacingX: 0.5\nSpacingY: 0.25\nSpacingZ: 10\n\nlabel: ground_glass\n"
        "slice_number: 3\nnb_points_on_contour: 3\n1 1\n2 1\n2 2\n"
        "label: healthy\nslice_number: 1\nnb_points_on_contour: 3\n0 0\n1 0\n1 1\n"
    )
    spacing, regions = medgift.parse(path)
    assert spacing == (0.5, 0.25)
    assert [(label, number) for label, number, _ in regions] == [
        ("ground_glass", 3),
        ("healthy", 1),
    ]
    assert regions[0][2].tolist() == [[2, 4], [4, 4], [4, 8]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "SpacingX: 0.5\nSpacingY: 0\n",
        "SpacingX: 1\nSpacingY: 1\nlabel: a\nnb_points_on_contour: 3\n1 1\n2 1\n",
        "SpacingX: 1\nSpacingY: 1\nlabel: a\nnb_points_on_contour: 1\n1 nan\n",
        "label: a\nnb_points_on_contour: 1\n1 1\n",
    ],
)
def test_broken_contour_files_are_refused(tmp_path, text):
    path = tmp_path / "CT.txt"
    path.write_text(text)
    with refused_at(path):
        medgift.parse(path)

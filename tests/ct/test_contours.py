"""Contours of an ROI combine by type and relative position."""

import numpy as np
import pydicom
import pytest
from basics import refused_at
from matplotlib.path import Path as Polygon

from twostage_jax.ct.patients import search
from twostage_jax.ct.regions.rtstruct import area
from twostage_jax.data import ct_patches

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
import roi_files
from roi_files import SIDE, box, label_masks, write_series

PLAIN = {"size": 8, "stride": 4, "coverage": 0.5, "lungs": "off", "per_class": 0}
XOR = "CLOSEDPLANAR_XOR"


def enclosed(*contours):
    return area(list(contours), (SIDE, SIDE))


def filled(*boxes):
    """Returns the pixels inside boxes (top, left, bottom, right)."""
    mask = np.zeros((SIDE, SIDE), bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


A, B, INNER = (2, 2, 22, 22), (12, 12, 30, 30), (6, 6, 10, 10)


def circle(x, y, radius, count=90):
    angle = np.arange(count) * 2 * np.pi / count
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def in_circle(x, y, radius):
    rows, columns = np.indices((SIDE, SIDE))
    places = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = Polygon(circle(x, y, radius)).contains_points(places)
    return inside.reshape(SIDE, SIDE)


class TestClosedPlanar:
    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_partial_overlap_is_a_union(self, order):
        contours = [box(*A), box(*B)]
        found = enclosed(*(contours[i] for i in order))
        np.testing.assert_array_equal(found, filled(A, B))
        assert found.sum() == 400 + 324 - 100

    def test_overlapping_circles_are_a_union(self):
        found = enclosed(circle(11.3, 12.1, 7.7), circle(17.9, 14.2, 6.4))
        expected = in_circle(11.3, 12.1, 7.7) | in_circle(17.9, 14.2, 6.4)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_contour_entirely_inside_another_is_a_hole(self, order):
        contours = [box(*A), box(*INNER)]
        found = enclosed(*(contours[i] for i in order))
        np.testing.assert_array_equal(found, filled(A) & ~filled(INNER))

    def test_island_in_a_hole_and_hole_in_the_island(self):
        boxes = [(2, 2, 30, 30), (5, 5, 27, 27), (9, 9, 23, 23), (14, 14, 18, 18)]
        found = enclosed(*(box(*b) for b in (boxes[2], boxes[0], boxes[3], boxes[1])))
        expected = filled(boxes[0]) & ~filled(boxes[1])
        expected |= filled(boxes[2]) & ~filled(boxes[3])
        np.testing.assert_array_equal(found, expected)

    def test_holes_that_overlap_are_both_holes(self):
        outer, one, two = (2, 2, 30, 30), (5, 5, 15, 15), (10, 10, 20, 20)
        found = enclosed(box(*outer), box(*one), box(*two))
        np.testing.assert_array_equal(found, filled(outer) & ~filled(one, two))

    def test_hole_in_one_of_two_that_overlap(self):
        found = enclosed(box(*A), box(*B), box(*INNER))
        np.testing.assert_array_equal(found, filled(A, B) & ~filled(INNER))
        both = (14, 14, 18, 18)
        found = enclosed(box(*A), box(*B), box(*both))
        np.testing.assert_array_equal(found, filled(A, B) & ~filled(both))

    def test_repeated_contour_counts_once(self):
        shape = circle(15.2, 14.8, 9.3)
        for copy in (
            shape,
            shape[::-1],
            np.roll(shape, 7, axis=0),
            np.round(shape, 1),
            np.vstack([shape, shape[:1]]),
        ):
            found = enclosed(shape, copy)
            assert (found != in_circle(15.2, 14.8, 9.3)).sum() <= 2
            assert found.sum() > 250
        np.testing.assert_array_equal(enclosed(*[box(*A)] * 3), filled(A))
        twice = enclosed(box(*A), box(*INNER), box(*A), box(*INNER))
        np.testing.assert_array_equal(twice, filled(A) & ~filled(INNER))

    def test_contours_that_touch_add_up(self):
        left, right, corner = (4, 4, 12, 12), (4, 12, 12, 20), (12, 20, 18, 26)
        found = enclosed(box(*left), box(*right), box(*corner))
        np.testing.assert_array_equal(found, filled(left, right, corner))

    @pytest.mark.parametrize("nudge", [0.0, 0.06])
    def test_hole_that_touches_the_outer_contour_from_inside(self, nudge):
        inner = (6, 2, 10, 10)
        found = enclosed(box(*A), box(*inner) - [nudge, 0])
        np.testing.assert_array_equal(found, filled(A) & ~filled(inner))

    def test_keyhole_stays_a_hole(self):
        outer, inner = box(*A), box(*INNER)
        keyhole = np.vstack([outer, outer[:1], inner[:1], inner[::-1]])
        found = enclosed(keyhole)
        np.testing.assert_array_equal(found, filled(A) & ~filled(INNER))
        # The island is next to the area of the keyhole, not inside it.
        island = (7, 7, 9, 9)
        found = enclosed(keyhole, box(*island))
        np.testing.assert_array_equal(
            found, (filled(A) & ~filled(INNER)) | filled(island)
        )

    def test_concave_contour_does_not_enclose_its_bay(self):
        arch = np.array(
            [[2, 2], [28, 2], [28, 28], [20, 28], [20, 10], [10, 10], [10, 28], [2, 28]]
        )
        found = enclosed(arch - 0.5, box(12, 12, 26, 18))
        expected = filled((2, 2, 28, 28)) & ~filled((10, 10, 28, 20))
        np.testing.assert_array_equal(found, expected | filled((12, 12, 26, 18)))


def read(folder, drawn, names):
    """Returns the path of a structure set, and its label masks by InstanceNumber."""
    images = write_series(folder / "ct")
    path = folder / "rt" / "x"
    roi_files.write_rtstruct(path, images, drawn, names)
    return path, labels_of(folder, names)


def labels_of(folder, names):
    found, _ = label_masks(folder / "ct", names, folder / "rt")
    return {header.number: mask for header, mask in found}


class TestTypes:
    def test_xor_contours_are_combined_by_exclusive_or(self, tmp_path):
        drawn = [(2, "a", box(*b), XOR) for b in (A, B, INNER)]
        _, found = read(tmp_path, drawn, ["a"])
        expected = filled(A) ^ filled(B) ^ filled(INNER)
        np.testing.assert_array_equal(found[3] > 0, expected)

    def test_types_may_differ_between_slices_but_not_on_one(self, tmp_path):
        drawn = [(2, "a", box(*A), XOR), (2, "a", box(*B), XOR)]
        drawn += [(3, "a", box(*A)), (3, "a", box(*INNER))]
        path, found = read(tmp_path, drawn, ["a"])
        np.testing.assert_array_equal(found[3] > 0, filled(A) ^ filled(B))
        np.testing.assert_array_equal(found[4] > 0, filled(A) & ~filled(INNER))
        with refused_at(path) as error:
            read(tmp_path, [*drawn, (3, "a", box(*B), XOR)], ["a"])
        assert "'a'" in str(error.value)

    @pytest.mark.parametrize("kind", ["OPEN_PLANAR", "OPEN_NONPLANAR", ""])
    def test_open_contours_are_refused_with_the_way_out(self, tmp_path, kind):
        drawn = [(2, "a", box(*A)), (2, "wire", box(*B), kind)]
        with refused_at(tmp_path / "rt" / "x") as error:
            read(tmp_path, drawn, ["a", "wire"])
        assert "'wire'" in str(error.value) and "--classes" in str(error.value)
        np.testing.assert_array_equal(labels_of(tmp_path, ["a"])[3] > 0, filled(A))

    def test_points_and_empty_rois_are_not_classes_but_noted(self, tmp_path):
        images = write_series(tmp_path / "ct")
        path = tmp_path / "rt" / "x"
        drawn = [
            (2, "a", box(*A)),
            (2, "a", np.array([[3.0, 3.0]]), "POINT"),
            (4, "b", box(*B)),
            (3, "isocentre", np.array([[16.0, 16.0]]), "POINT"),
            (3, "line", np.array([[1.0, 1.0], [9.0, 9.0]])),
        ]
        names = ["a", "b", "isocentre", "line", "empty"]
        roi_files.write_rtstruct(path, images, drawn, names)

        dataset = pydicom.dcmread(path)
        del dataset.ROIContourSequence[-1].ContourSequence
        dataset.save_as(path)
        for classes in ("", "b,a"):
            recipe = ct_patches.recipe(
                path=str(tmp_path / "ct"), rois=str(path), classes=classes, **PLAIN
            )
            assert recipe.class_names == tuple(classes.split(",") if classes else "ab")
            made = recipe.make(recipe.tasks[0])
            assert {e.label for e in made} == {0, 1}
            (line,) = made.notes.lines()
            assert line.startswith("4 ROIs or contours")
        marked = labels_of(tmp_path, ["a", "b"])
        np.testing.assert_array_equal(marked[3], filled(A) * 1)
        np.testing.assert_array_equal(marked[5], filled(B) * 2)

    def test_set_of_nothing_but_points_marks_nothing(self, tmp_path):
        images = write_series(tmp_path / "ct")
        points = [(3, "isocentre", np.array([[16.0, 16.0]]), "POINT")]
        roi_files.write_rtstruct(tmp_path / "rt" / "p", images, points, ["isocentre"])
        drawn = [(2, "a", box(*A))]
        roi_files.write_rtstruct(tmp_path / "rt" / "x", images, drawn, ["a"])
        found = search(tmp_path / "ct", tmp_path / "rt")
        assert [file.path.name for file in found.regions] == ["x"]
        assert tmp_path / "rt" / "p" in dict(found.skipped)

"""Phantom patients, their DICOM files, and their patches."""

import dataclasses
import re

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

from twostage_jax.ct.phantom import (
    CLASS_NAMES,
    DISEASES,
    KERNELS,
    Scanner,
    phantom_slices,
    round_field,
    write_patient,
)
from twostage_jax.ct.phantom_anatomy import (
    TEXTURES,
    Grid,
    Lung,
    draw,
    honeycombing,
    tree,
)
from twostage_jax.data.synthetic import phantoms

SMALL = 128  # Pixels per side if the appearance is irrelevant.


@pytest.fixture(scope="module")
def four():
    """Returns four patients at full resolution, who together have all classes."""
    return [phantom_slices(patient, slices=1) for patient in range(4)]


def hu_of(patients, name):
    index = 1 + CLASS_NAMES.index(name)
    return np.concatenate([p.hu[p.labels == index] for p in patients])


def with_manufacturer(phantom, manufacturer):
    scanner = dataclasses.replace(phantom.scanner, manufacturer=manufacturer)
    return dataclasses.replace(phantom, scanner=scanner)


def test_patient_is_determined_by_the_seed():
    first, again = (phantom_slices(5, seed=1, matrix=SMALL) for _ in range(2))
    other = phantom_slices(5, seed=2, matrix=SMALL)
    for name in ("hu", "labels", "lungs"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert first.scanner == again.scanner
    assert not np.array_equal(first.hu, other.hu)


def test_each_disease_occurs_in_a_third_of_the_patients():
    for name in CLASS_NAMES[1:]:
        assert sum(name in diseases for diseases in DISEASES) == len(DISEASES) / 3


@pytest.mark.parametrize("patient", range(12))
def test_patients_have_normal_lung_and_their_diseases(patient):
    phantom = phantom_slices(patient, slices=2, matrix=SMALL)
    shown = {CLASS_NAMES[value - 1] for value in np.unique(phantom.labels) if value}
    assert shown == {"normal", *DISEASES[patient]}


def test_patients_vary_in_density_noise_sharpness_and_spacing():
    patients = [phantom_slices(i, slices=1, matrix=SMALL) for i in range(24)]
    scanners = [p.scanner for p in patients]
    assert {s.kernel for s in scanners} == {row[1] for row in KERNELS}
    density = [np.median(hu_of([p], "normal")) for p in patients]
    assert np.ptp(density) > 40 and np.std(density) > 10
    # In the air around the patient, where values below -1024 HU are clipped.
    corners = [p.hu[:, :12, :12] for p in patients]
    noise = [np.percentile(air, 84) - np.median(air) for air in corners]
    assert max(noise) > 2 * min(noise)
    assert np.corrcoef(noise, [s.noise for s in scanners])[0, 1] > 0.9
    blur, edge = ([getattr(s, name) for s in scanners] for name in ("blur", "edge"))
    assert max(blur) > 1.3 * min(blur) and min(edge) == 0 and max(edge) > 0.5
    spacing = [p.spacing for p in patients]
    assert len(set(spacing)) == 24 and max(spacing) > 1.2 * min(spacing)


def test_labels_lie_inside_the_lungs(four):
    for phantom in four:
        assert phantom.hu.dtype == np.int16 and phantom.labels.dtype == np.uint8
        assert not phantom.labels[~phantom.lungs].any()
        assert 0.6 < phantom.spacing < 0.95
        share = phantom.lungs.mean()
        assert 0.1 < share < 0.45


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("normal", -900, -780),
        ("consolidation", -130, 60),
        ("ground_glass", -760, -430),
        ("reticular", -860, -550),
        ("emphysema", -980, -840),
    ],
)
def test_median_hu_of_a_class_is_that_of_the_disease(four, name, low, high):
    assert low < np.median(hu_of(four, name)) < high


@pytest.mark.parametrize("seed", range(4))
def test_honeycombing_is_cysts_of_3_to_10_mm_amid_walls_of_soft_tissue(seed):
    grid = Grid(256, 0.4)
    where = np.zeros(grid.shape, bool)
    where[40:216, 40:216] = True
    air, vessels = np.full(grid.shape, -850.0), np.zeros(grid.shape)
    lung = Lung(grid, air, vessels, np.zeros((2, 2)))
    hu = honeycombing(np.random.default_rng(seed), lung, 0.6, where)[60:196, 60:196]
    assert np.mean(hu > -300) > 0.15 and np.mean(hu < -900) > 0.2
    cysts, count = ndimage.label(hu < -700)
    areas = np.bincount(cysts.ravel())[1:] * 0.4**2
    whole = np.sort(2 * np.sqrt(areas / np.pi))[
        count // 4 :
    ]  # Without incomplete ones.
    assert count > 40
    assert 3 < np.median(whole) < 8 and whole.max() < 14


def test_nodules_and_vessels_are_brighter_than_lung(four):
    assert np.mean(hu_of(four, "nodular") > -500) > np.mean(
        hu_of(four, "normal") > -500
    )


def test_air_outside_and_bone_inside_the_body(four):
    for phantom in four:
        assert abs(np.median(phantom.hu[:, :20]) + 1000) < 15
        assert np.mean(phantom.hu > 300) > 0.005


def test_scanner_adds_noise_of_the_stated_standard_deviation():
    scanner = Scanner.sample(np.random.default_rng(0))
    grid = Grid(256, 0.7)
    image = scanner.image(np.random.default_rng(1), grid, np.zeros(grid.shape))
    assert abs(image.mean()) < 1
    assert image.std() == pytest.approx(scanner.noise, rel=0.02)


@pytest.mark.parametrize(
    "manufacturer, intercept, padding",
    [
        ("GE MEDICAL SYSTEMS", -1024, -2000),
        ("TOSHIBA", 0, -2048),
        ("SIEMENS", -1024, None),
    ],
)
def test_dicom_files_contain_the_exact_hu(tmp_path, manufacturer, intercept, padding):
    phantom = phantom_slices(7, slices=2, matrix=SMALL)
    phantom = with_manufacturer(phantom, manufacturer)
    write_patient(tmp_path / "p", phantom)
    files = sorted((tmp_path / "p").glob("*.dcm"))
    assert len(files) == 2
    inside = round_field(phantom.hu.shape[1:]) | (padding is None)
    for path, hu in zip(files, phantom.hu, strict=True):
        image = pydicom.dcmread(path)
        assert image.PatientID == "PHANTOM-007" and image.Modality == "CT"
        assert image.RescaleIntercept == intercept
        stored = image.pixel_array.astype(int)
        restored = stored * int(image.RescaleSlope) + int(image.RescaleIntercept)
        assert np.array_equal(restored[inside], hu[inside])
        assert np.all(stored[~inside] == padding)
        tagged = padding if manufacturer.startswith("GE") else None
        assert image.get("PixelPaddingValue") == tagged


def test_manufacturers_of_the_kernels_are_those_tested_above():
    assert {row[0] for row in KERNELS} == {"GE MEDICAL SYSTEMS", "TOSHIBA", "SIEMENS"}


def test_dicom_geometry_and_identifiers(tmp_path):
    phantom = phantom_slices(0, slices=3, matrix=SMALL)
    write_patient(tmp_path / "p", phantom, seed=4)
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "p").glob("*.dcm"))]
    heights = [float(image.ImagePositionPatient[2]) for image in images]
    assert np.allclose(-np.diff(heights), phantom.scanner.gap)
    assert {image.SeriesInstanceUID for image in images} == {
        images[0].SeriesInstanceUID
    }
    assert len({image.SOPInstanceUID for image in images}) == 3
    for image in images:
        assert image.SOPClassUID == pydicom.uid.CTImageStorage
        assert image.SOPInstanceUID == image.file_meta.MediaStorageSOPInstanceUID
        assert pydicom.uid.UID(image.SOPInstanceUID).is_valid
        assert np.allclose(image.PixelSpacing, phantom.spacing)
        centre = np.array(image.ImagePositionPatient[:2]) + 63.5 * phantom.spacing
        assert np.allclose(centre, 0, atol=1e-3)


def test_masks_are_named_after_their_image(tmp_path):
    phantom = phantom_slices(1, slices=2, matrix=SMALL)
    write_patient(tmp_path / "p", phantom)
    for index, path in enumerate(sorted((tmp_path / "p").glob("*.dcm"))):
        uid = pydicom.dcmread(path).SOPInstanceUID
        rois = np.asarray(Image.open(tmp_path / "p" / "rois" / f"{uid}.png"))
        lungs = np.asarray(Image.open(tmp_path / "p" / "lungs" / f"{uid}.png"))
        assert np.array_equal(rois, phantom.labels[index])
        assert np.array_equal(lungs.astype(bool), phantom.lungs[index])


def test_writing_twice_gives_the_same_bytes(tmp_path):
    phantom = phantom_slices(2, slices=1, matrix=SMALL)
    for name in ("a", "b"):
        write_patient(tmp_path / name, phantom)
    first = {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    again = {p.name: p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()}
    assert first == again and len(first) == 2  # Both masks have the name of the image.


def test_recipe_cuts_patches_from_the_drawn_patient():
    recipe = phantoms.recipe(patients=4, slices=1, per_class=5)
    phantom = phantom_slices(3, slices=1)
    examples = recipe.make(recipe.tasks[3])
    assert recipe.kind == "ct" and recipe.class_names == CLASS_NAMES
    assert len({example.id for example in examples}) == len(examples)
    assert len({example.group for example in examples}) == 1
    labels = [example.label for example in examples]
    assert {CLASS_NAMES[k] for k in labels} == {"normal", "nodular", "ground_glass"}
    assert max(labels.count(k) for k in set(labels)) == 5
    for example in examples:
        assert example.image.dtype == np.int16 and example.image.shape == (32, 32, 1)
        assert example.split == "train"
        row, column = map(int, re.search(r"r(\d+)c(\d+)$", example.id).groups())
        place = np.s_[0, row : row + 32, column : column + 32]
        assert np.array_equal(example.image[..., 0], phantom.hu[place])
        assert np.mean(phantom.labels[place] == example.label + 1) >= 0.7


def test_first_four_patients_have_all_classes():
    assert phantoms.FEWEST_PATIENTS == 4
    shown = {name for diseases in DISEASES[:4] for name in diseases}
    assert shown == set(TEXTURES)


def test_tree_on_a_line_thickens_towards_the_root():
    tips = np.array([[3.0, 0], [1.0, 0], [2.0, 0]])
    pieces = tree(np.random.default_rng(0), tips, np.zeros(2), 0.5)
    pieces = pieces.reshape(4, 3, 5)  # Four pieces of each of three branches.
    assert np.allclose(pieces[0, :, :2], [[0, 0], [1, 0], [2, 0]])
    assert np.allclose(pieces[-1, :, 2:4], [[1, 0], [2, 0], [3, 0]])
    assert np.allclose(pieces[0, :, 4] ** 2.7, np.array([3, 2, 1]) * 0.5**2.7)


def test_drawn_segment_covers_its_area():
    grid = Grid(100, 0.5)
    line = draw(grid, np.array([[-10.0, 0, 10, 0, 1.5]]))
    # 20 mm by 3 mm, and half a disc of radius 1.5 mm at the end.
    area = 20 * 3 + np.pi * 1.5**2 / 2
    assert line.sum() * 0.5**2 == pytest.approx(area, rel=0.1)

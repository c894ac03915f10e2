"""Regions are placed if all clues agree, and refused otherwise."""

import dataclasses
import gzip
import itertools
import shutil

import numpy as np
import pydicom
import pytest
from basics import refused_at
from ct_files import SERIES, write_enhanced
from PIL import Image

from twostage_jax.ct.patients import search
from twostage_jax.ct.series import find_series
from twostage_jax.data import ct_patches
from twostage_jax.maps import write

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
import nibabel
import roi_files
from roi_files import SIDE, box, label_masks, write_series

FROM_HEAD = [6, 5, 4, 3, 2, 1]
PLAIN = {"size": 8, "stride": 8, "coverage": 0.5, "lungs": "off", "per_class": 0}


def regions_of(folder, rois, names="a"):
    """Returns label masks by InstanceNumber, and the positions of numbered masks."""
    found, placed = label_masks(folder, names, rois)
    return {header.number: mask for header, mask in found if mask.any()}, placed


def masks_of(folder, rois, names="a"):
    return regions_of(folder, rois, names)[0]


def square(value=1, top=8, left=8, size=8):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, mask)
    elif np.ndim(mask) == 3:
        first, *rest = map(Image.fromarray, mask)
        first.save(path, save_all=True, append_images=rest)
    else:
        Image.fromarray(mask).save(path)


def refused(path, folder, rois=None, names="a"):
    """Returns the message with which a file of regions is refused."""
    with refused_at(path) as error:
        masks_of(folder, rois or path.parent, names)
    return str(error.value)


class TestNumberedMasks:
    def test_mask_named_after_a_file_belongs_to_its_slice(self, tmp_path):
        names = [f"im{n:03d}.dcm" for n in FROM_HEAD]
        write_series(tmp_path / "ct", numbers=FROM_HEAD, names=names)
        save(tmp_path / "rois" / "im001.png", square(1))
        save(tmp_path / "rois" / "IM002_mask.png", square(2))
        found, placed = regions_of(tmp_path / "ct", tmp_path / "rois", names="ab")
        assert {n: mask.max() for n, mask in found.items()} == {1: 1, 2: 2}
        first = min(placed)
        assert (first.number, first.header.number) == (1, 1)
        assert first.header.position[2] == -75

    def test_numbers_with_contradicting_numberings_are_refused(self, tmp_path):
        images = write_series(tmp_path / "ct", numbers=FROM_HEAD)
        path = tmp_path / "rois" / "mask1.png"
        save(path, square())
        text = refused(path, tmp_path / "ct")
        for image, z in ((images[0], "z = -100 mm"), (images[5], "z = -75 mm")):
            assert str(image.filename) in text
            assert z in text

    def test_numbers_are_read_if_all_numberings_agree(self, tmp_path):
        names = [f"IM{n:04d}" for n in range(1, 7)]
        write_series(tmp_path / "ct", names=names)
        for number in (2, 5):
            save(tmp_path / "rois" / f"mask{number}.png", square(number == 2))
        found, placed = regions_of(tmp_path / "ct", tmp_path / "rois")
        assert list(found) == [2]
        assert {one.number: one.header.number for one in placed} == {2: 2, 5: 5}

    @pytest.mark.parametrize("agree", [True, False])
    def test_bare_number_must_agree_with_instance_number(self, tmp_path, agree):
        names = [f"{n}.dcm" for n in FROM_HEAD]
        numbers = FROM_HEAD if agree else FROM_HEAD[::-1]
        write_series(tmp_path / "ct", numbers=numbers, names=names)
        path = tmp_path / "rois" / "2.png"
        save(path, square())
        if agree:
            assert list(masks_of(tmp_path / "ct", tmp_path / "rois")) == [2]
        else:
            text = refused(path, tmp_path / "ct")
            assert "InstanceNumber" in text
            assert str(tmp_path / "ct" / "2.dcm") in text

    def test_instance_numbers_that_do_not_start_at_1(self, tmp_path):
        write_series(tmp_path / "up", numbers=range(101, 107))
        write_series(tmp_path / "down", numbers=range(106, 100, -1))
        # An InstanceNumber; the other numberings end before it.
        save(tmp_path / "a" / "m103.png", square())
        assert list(masks_of(tmp_path / "down", tmp_path / "a")) == [103]
        # The third slice from the feet and by InstanceNumber.
        save(tmp_path / "b" / "m3.png", square())
        assert list(masks_of(tmp_path / "up", tmp_path / "b")) == [103]
        refused(tmp_path / "b" / "m3.png", tmp_path / "down")

    def test_number_0_shows_that_masks_count_from_0(self, tmp_path):
        write_series(tmp_path / "ct")
        save(tmp_path / "rois" / "m000.png", square(0))
        save(tmp_path / "rois" / "m003.png", square(1))
        assert list(masks_of(tmp_path / "ct", tmp_path / "rois")) == [4]

    def test_slices_files_that_count_from_0_contradict_instance_number(self, tmp_path):
        write_series(tmp_path / "ct", names=[f"im{n}.dcm" for n in range(6)])
        path = tmp_path / "rois" / "m3.png"
        save(path, square())
        refused(path, tmp_path / "ct")
        save(tmp_path / "named" / "im3.png", square())
        assert list(masks_of(tmp_path / "ct", tmp_path / "named")) == [4]

    def test_number_without_a_slice_is_refused(self, tmp_path):
        write_series(tmp_path / "ct")
        for name in ("m7.png", "other.png", "1.2.3.png"):
            path = tmp_path / name.replace(".", "") / name
            save(path, square())
            refused(path, tmp_path / "ct")

    @pytest.mark.parametrize("suffix", [".tif", ".npy"])
    def test_pages_are_refused_if_their_order_is_uncertain(self, tmp_path, suffix):
        stack = np.stack([square(0), square(1), *[square(0)] * 4])
        path = tmp_path / "rois" / f"all{suffix}"
        save(path, stack)
        write_series(tmp_path / "down", numbers=FROM_HEAD)
        refused(path, tmp_path / "down")
        write_series(tmp_path / "up")
        found, placed = regions_of(tmp_path / "up", tmp_path / "rois")
        assert list(found) == [2]
        ((number, header, _, count),) = placed
        assert (number, header.position[2], count) == (1, -100, 6)
        images = write_series(tmp_path / "unnumbered", InstanceNumber=None)
        found, _ = label_masks(tmp_path / "unnumbered", ["a"], path.parent)
        marked = [header.sop_uid for header, mask in found if mask.any()]
        assert marked == [images[1].SOPInstanceUID]

    def test_files_named_from_the_head_contradict_pages_too(self, tmp_path):
        names = [f"IM{n:04d}" for n in FROM_HEAD]
        write_series(tmp_path / "ct", names=names, InstanceNumber=None)
        path = tmp_path / "rois" / "all.npy"
        save(path, np.stack([square()] * 6))
        refused(path, tmp_path / "ct")

    def test_pages_named_after_a_file_of_frames_follow_its_frames(self, tmp_path):
        (tmp_path / "ct").mkdir()
        stored = np.zeros((3, SIDE, SIDE), np.int16)
        write_enhanced(tmp_path / "ct" / "exam.dcm", stored, [10, 5, 0])
        stack = np.stack([square(1), square(0), square(2)])
        save(tmp_path / "named" / "exam.npy", stack)
        found = masks_of(tmp_path / "ct", tmp_path / "named", names="ab")
        assert {n: mask.max() for n, mask in found.items()} == {1: 1, 3: 2}
        path = tmp_path / "r" / "all.npy"
        save(path, stack)
        text = refused(path, tmp_path / "ct", names="ab")
        assert "z = 10 mm" in text and "z = 0 mm" in text

    def test_two_phases_at_one_position_need_names(self, tmp_path):
        write_series(tmp_path / "ct")
        names = [f"late{n}.dcm" for n in range(101, 107)]
        numbers = range(101, 107)
        write_series(tmp_path / "ct", phase=2, numbers=numbers, names=names)
        path = tmp_path / "rois" / "m1.png"
        save(path, square())
        refused(path, tmp_path / "ct")
        save(tmp_path / "named" / "late103.png", square())
        assert list(masks_of(tmp_path / "ct", tmp_path / "named")) == [103]

    def test_ambiguous_file_names_in_two_series_are_refused(self, tmp_path):
        for series in "ab":
            write_series(
                tmp_path / "ct" / series,
                phase=ord(series) - 96,
                series=f"{SERIES}.{ord(series)}",
                names=[f"im{n}.dcm" for n in range(1, 7)],
            )
        path = tmp_path / "rois" / "im1.png"
        save(path, square())
        refused(path, tmp_path / "ct")
        save(tmp_path / "own" / f"{SERIES}.98" / "im2.png", square())
        (((header, _),), _) = label_masks(tmp_path / "ct", ["a"], tmp_path / "own")
        assert (header.path.parent.name, header.number) == ("b", 2)

    def test_names_of_slices_distinguish_masks_of_several_patients(self, tmp_path):
        for n, patient in enumerate("pq"):
            write_series(
                tmp_path / "ct",
                phase=n + 1,
                series=f"{SERIES}.{n}",
                PatientID=patient,
                names=[f"{patient}_{k}.dcm" for k in range(1, 7)],
            )
        save(tmp_path / "rois" / "q_3.png", square())
        (patient,) = search(tmp_path / "ct", tmp_path / "rois")
        assert {header.path.name[0] for header in patient.headers} == {"q"}

    def test_remark_states_the_slice_of_the_first_mask(self, tmp_path):
        write_series(tmp_path / "ct", numbers=range(11, 17))
        save(tmp_path / "rois" / "m1.png", square())
        save(tmp_path / "rois" / "m2.png", square())
        recipe = ct_patches.recipe(
            path=str(tmp_path / "ct"), rois=str(tmp_path / "rois"), classes="a", **PLAIN
        )
        made = recipe.make(recipe.tasks[0])
        (row,) = made.facts["numbered_masks"]
        assert (row["number"], row["instance_number"], row["z_mm"]) == (1, 11, -100)
        assert row["masks"] == 2
        (line,) = [x for x in recipe.remarks([], made.facts) if row["series"] in x]
        assert "-100" in line and "11" in line and str(tmp_path) not in line


class TestContourNumbers:
    NAMES = [f"CT-INSPIRIUM-77-{n:04d}.dcm" for n in FROM_HEAD]

    def write(self, folder, images, number):
        path = folder / "regions.txt"
        drawn = [(number - 1, "a", box(8, 8, 16, 16))]
        folder.mkdir(exist_ok=True)
        roi_files.write_medgift(path, images, drawn)
        return path

    def test_file_names_of_the_format_determine_the_slice(self, tmp_path):
        images = write_series(tmp_path / "ct", names=self.NAMES)
        path = self.write(tmp_path / "rois", images, 2)
        assert list(masks_of(tmp_path / "ct", path)) == [5]

    def test_other_names_must_agree_with_instance_number(self, tmp_path):
        names = [name.replace("CT", "IM") for name in self.NAMES]
        images = write_series(tmp_path / "ct", names=names)
        path = self.write(tmp_path / "rois", images, 2)
        refused(path, tmp_path / "ct", path)
        write_series(tmp_path / "ct", names=names, numbers=FROM_HEAD)
        assert list(masks_of(tmp_path / "ct", path)) == [2]

    def test_instance_number_replaces_names_without_numbers(self, tmp_path):
        images = write_series(tmp_path / "ct", numbers=FROM_HEAD)
        path = self.write(tmp_path / "rois", images, 2)
        assert list(masks_of(tmp_path / "ct", path)) == [2]


def two_phases(folder):
    write_series(folder / "a")
    return write_series(folder / "b", phase=2, numbers=range(101, 107))


def write_form(form, path, images, index=2, name="a", **options):
    """Writes a square on one slice; returns the expected label mask."""
    mask = square()
    if form == "seg":
        labels = np.zeros((len(images), SIDE, SIDE), np.uint8)
        labels[index] = mask
        roi_files.write_seg(path, images, labels, [name], **options)
    else:
        drawn = [(index, name, box(8, 8, 16, 16))]
        roi_files.write_rtstruct(path, images, drawn, [name])
    return mask


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def frames_of(dataset):
    return dataset.PerFrameFunctionalGroupsSequence


def without_names(dataset):
    """Removes the names of slices from the frames or contours of a file."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        for frame in frames_of(dataset):
            del frame.DerivationImageSequence
    else:
        for roi in dataset.ROIContourSequence:
            for contour in roi.ContourSequence:
                del contour.ContourImageSequence


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
class TestNamedSlices:
    def write_moved(self, folder, form, shift):
        """Writes slices, and regions that were drawn `shift` mm away from them."""
        images = write_series(folder / "ct")
        for image in images:
            image.ImagePositionPatient = np.add(
                image.ImagePositionPatient, shift
            ).tolist()
        write_form(form, folder / "r" / "x", images)
        return folder / "r" / "x"

    def test_name_selects_between_two_slices_at_one_position(self, tmp_path, form):
        late = two_phases(tmp_path / "ct")
        mask = write_form(form, tmp_path / "r" / "x", late)
        found = masks_of(tmp_path / "ct", tmp_path / "r")
        assert list(found) == [103]
        np.testing.assert_array_equal(found[103], mask)

    def test_patches_have_the_hu_of_the_named_phase(self, tmp_path, form):
        late = two_phases(tmp_path / "ct")
        write_form(form, tmp_path / "r" / "x", late)
        recipe = ct_patches.recipe(
            path=str(tmp_path / "ct"), rois=str(tmp_path / "r"), classes="a", **PLAIN
        )
        made = recipe.make(recipe.tasks[0])
        assert made
        assert {int(hu) for e in made for hu in np.unique(e.image)} == {-680}

    def test_without_names_two_slices_at_one_position_are_refused(self, tmp_path, form):
        late = two_phases(tmp_path / "ct")
        path = tmp_path / "r" / "x"
        write_form(form, path, late)
        edit(path, without_names)
        if form == "seg":
            # The file as a whole refers to the instances of the second phase.
            assert list(masks_of(tmp_path / "ct", path.parent)) == [103]
            edit(path, lambda d: delattr(d, "ReferencedSeriesSequence"))
        text = refused(path, tmp_path / "ct")
        assert str(tmp_path / "ct" / "a" / "c.dcm") in text
        assert str(tmp_path / "ct" / "b" / "c.dcm") in text

    def test_name_and_position_that_contradict_each_other_are_refused(
        self, tmp_path, form
    ):
        images = write_series(tmp_path / "ct")
        path = tmp_path / "r" / "x"
        write_form(form, path, images)
        other = images[4]

        def rename(dataset):
            if form == "seg":
                (derivation,) = frames_of(dataset)[0].DerivationImageSequence
                (source,) = derivation.SourceImageSequence
            else:
                (contour,) = dataset.ROIContourSequence[0].ContourSequence
                (source,) = contour.ContourImageSequence
            source.ReferencedSOPInstanceUID = other.SOPInstanceUID

        edit(path, rename)
        text = refused(path, tmp_path / "ct")
        assert str(tmp_path / "ct" / "c.dcm") in text  # The slice at its position.
        assert str(other.filename) in text  # The slice that it names.

    def test_series_with_repeated_uids_are_distinguished(self, tmp_path, form):
        write_series(tmp_path / "ct" / "a")
        tags = {"series": f"{SERIES}.88", "numbers": range(101, 107)}
        other = write_series(tmp_path / "ct" / "b", **tags)
        for image in other:  # Different pixels.
            image.PixelData = (image.pixel_array + 300).tobytes()
            image.save_as(image.filename)
        write_form(form, tmp_path / "r" / "x", other)
        assert list(masks_of(tmp_path / "ct", tmp_path / "r")) == [103]

    def test_missing_series_does_not_matter_if_slices_are_named(self, tmp_path, form):
        images = write_series(tmp_path / "ct")
        path = tmp_path / "r" / "x"
        mask = write_form(form, path, images)

        def refer(dataset):
            absent = roi_files.item(SeriesInstanceUID="1.2.3.4.5")
            if form == "seg":
                dataset.ReferencedSeriesSequence.append(absent)
            else:
                (frame,) = dataset.ReferencedFrameOfReferenceSequence
                (study,) = frame.RTReferencedStudySequence
                study.RTReferencedSeriesSequence.append(absent)

        edit(path, refer)
        found = masks_of(tmp_path / "ct", path.parent)
        np.testing.assert_array_equal(found[3], mask)
        edit(path, without_names)
        refused(path, tmp_path / "ct")

    def test_named_slices_distinguish_two_referenced_series(self, tmp_path, form):
        thin = write_series(tmp_path / "ct" / "a", count=11, step=(0, 0, 2.5))
        tags = {"series": f"{SERIES}.5", "numbers": range(101, 107)}
        thick = write_series(tmp_path / "ct" / "b", phase=2, **tags)
        path = tmp_path / "r" / "x"
        write_form(form, path, thick)

        def refer(dataset):
            other = roi_files.item(SeriesInstanceUID=thin[0].SeriesInstanceUID)
            if form == "seg":
                dataset.ReferencedSeriesSequence.insert(0, other)
            else:
                (frame,) = dataset.ReferencedFrameOfReferenceSequence
                (study,) = frame.RTReferencedStudySequence
                study.RTReferencedSeriesSequence.insert(0, other)

        edit(path, refer)
        assert list(masks_of(tmp_path / "ct", path.parent)) == [103]

    def test_regions_outside_the_pixels_of_their_slice_are_refused(
        self, tmp_path, form
    ):
        path = self.write_moved(tmp_path, form, [500, 0, 0])
        refused(path, tmp_path / "ct")

    def test_regions_between_slices_are_refused(self, tmp_path, form):
        path = self.write_moved(tmp_path, form, [0, 0, 2.5])
        refused(path, tmp_path / "ct")
        edit(path, without_names)
        refused(path, tmp_path / "ct")

    def test_regions_of_a_tilted_series_lie_on_its_slices(self, tmp_path, form):
        images = write_series(tmp_path / "ct", step=(0, 4.0, 5.0))
        mask = write_form(form, tmp_path / "r" / "x", images, index=5)
        found = masks_of(tmp_path / "ct", tmp_path / "r")
        np.testing.assert_array_equal(found[6], mask)


class TestSegmentationFrames:
    def turn(self, path, orientation):
        def change(dataset):
            (shared,) = dataset.SharedFunctionalGroupsSequence
            (plane,) = shared.PlaneOrientationSequence
            plane.ImageOrientationPatient = orientation

        edit(path, change)

    @pytest.mark.parametrize("degrees", [3, 30, 90])
    @pytest.mark.parametrize("named", [True, False])
    def test_frames_that_are_not_parallel_to_the_slices_are_refused(
        self, tmp_path, degrees, named
    ):
        images = write_series(tmp_path / "ct")
        path = tmp_path / "r" / "x"
        write_form("seg", path, images)
        angle = np.radians(degrees)
        turned = [1, 0, 0, 0, round(np.cos(angle), 6), round(np.sin(angle), 6)]
        self.turn(path, turned)
        if not named:
            edit(path, without_names)
        text = refused(path, tmp_path / "ct")
        assert f"{degrees}.0 degrees" in text

    def test_mirrored_frames_are_placed_by_position(self, tmp_path):
        images = write_series(tmp_path / "ct")
        path = tmp_path / "r" / "x"
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[3:9, 20:31] = 1
        labels = np.zeros((6, SIDE, SIDE), np.uint8)
        # Rows run towards the right and columns towards the front: both are reversed.
        labels[2] = mask[::-1, ::-1]
        roi_files.write_seg(path, images, labels, ["a"])
        self.turn(path, [-1, 0, 0, 0, -1, 0])
        side = (SIDE - 1) * roi_files.MM

        def move(dataset):
            for frame in frames_of(dataset):
                (plane,) = frame.PlanePositionSequence
                x, y, z = plane.ImagePositionPatient
                plane.ImagePositionPatient = [x + side, y + side, z]

        edit(path, move)
        found = masks_of(tmp_path / "ct", path.parent)
        np.testing.assert_array_equal(found[3], mask)

    def test_frame_without_a_position_is_refused(self, tmp_path):
        images = write_series(tmp_path / "ct")
        path = tmp_path / "r" / "x"
        write_form("seg", path, images)
        edit(path, lambda d: delattr(frames_of(d)[0], "PlanePositionSequence"))
        assert "ImagePositionPatient" in refused(path, tmp_path / "ct")


def affine_of(images):
    """Returns the matrix of axial slices in the axes of NIfTI."""
    first, last = (
        np.array(i.ImagePositionPatient, float) for i in (images[0], images[-1])
    )
    matrix = np.diag([roi_files.MM, roi_files.MM, 1, 1])
    matrix[:3, 2] = (last - first) / (len(images) - 1)
    matrix[:3, 3] = first
    return np.diag([-1, -1, 1, 1]) @ matrix


def volume_of(count=6, index=2):
    volume = np.zeros((SIDE, SIDE, count), np.int16)
    volume[..., index] = square().T
    return volume


def write_nifti(path, volume, sform, scode=1, qform=None, qcode=0, kind="Nifti1Image"):
    image = getattr(nibabel, kind)(volume, sform)
    image.set_sform(sform, scode)
    image.set_qform(sform if qform is None else qform, qcode)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


class TestVolumes:
    def test_the_matrix_that_matches_the_slices_is_used(self, tmp_path):
        images = write_series(tmp_path / "ct")
        right = affine_of(images)
        wrong = right.copy()
        wrong[2, 3] += 5  # The next slice.
        for name, sform, qform in (("s", right, wrong), ("q", wrong, right)):
            path = tmp_path / name / "x.nii.gz"
            write_nifti(path, volume_of(), sform, 2, qform, 1)
            found = masks_of(tmp_path / "ct", path.parent)
            assert list(found) == [3]
            np.testing.assert_array_equal(found[3], square())

    def test_two_matrices_are_refused_if_both_or_neither_match(self, tmp_path):
        images = write_series(tmp_path / "ct")
        right = affine_of(images)
        mirrored = right @ np.diag([-1.0, 1, 1, 1])
        mirrored[:3, 3] = (right @ [SIDE - 1, 0, 0, 1])[:3]
        moved = right.copy()
        moved[0, 3] += 4
        for name, sform in (("both", right), ("none", moved)):
            path = tmp_path / name / "x.nii"
            qform = mirrored if name == "both" else moved @ np.diag([-1.0, 1, 1, 1])
            write_nifti(path, volume_of(), sform, 1, qform, 1)
            text = refused(path, tmp_path / "ct")
            assert "sform" in text and "qform" in text

    def test_rounded_matrices_are_equal(self, tmp_path):
        images = write_series(tmp_path / "ct")
        right = affine_of(images)
        write_nifti(tmp_path / "r" / "x.nii", volume_of(), right, 1, right + 1e-4, 1)
        assert list(masks_of(tmp_path / "ct", tmp_path / "r")) == [3]

    @pytest.mark.parametrize("form", ["plain .nii.gz", "gzip .nii", "NIfTI-2", "pair"])
    @pytest.mark.parametrize("ones", [0, 1])
    def test_content_determines_the_kind_of_nifti_file(self, tmp_path, form, ones):
        images = write_series(tmp_path / "ct")
        folder = tmp_path / "r"
        volume = volume_of().reshape(SIDE, SIDE, 6, *[1] * ones)
        matrix = affine_of(images)
        if form == "NIfTI-2":
            write_nifti(folder / "x.nii", volume, matrix, kind="Nifti2Image")
        elif form == "pair":
            write_nifti(folder / "x.img", volume, matrix, kind="Nifti1Pair")
        elif form == "gzip .nii":
            write_nifti(tmp_path / "y.nii.gz", volume, matrix)
            folder.mkdir()
            shutil.move(tmp_path / "y.nii.gz", folder / "x.nii")
            assert gzip.open(folder / "x.nii").read(1) == b"\x5c"
        else:
            write_nifti(tmp_path / "y.nii", volume, matrix)
            folder.mkdir()
            shutil.move(tmp_path / "y.nii", folder / "x.nii.gz")
        found = masks_of(tmp_path / "ct", folder)
        assert list(found) == [3]
        np.testing.assert_array_equal(found[3], square())

    def test_scaled_labels_are_read(self, tmp_path):
        images = write_series(tmp_path / "ct")
        image = nibabel.Nifti1Image(volume_of() * 4, affine_of(images))
        image.header.set_slope_inter(0.25, 0)
        (tmp_path / "r").mkdir()
        nibabel.save(image, tmp_path / "r" / "x.nii")
        np.testing.assert_array_equal(
            masks_of(tmp_path / "ct", tmp_path / "r")[3], square()
        )

    @pytest.mark.parametrize("content", [b"", b"hello" * 99, b"\x1f\x8b\x08 broken"])
    def test_error_about_broken_nifti_does_not_mention_dicom(self, tmp_path, content):
        write_series(tmp_path / "ct")
        path = tmp_path / "r" / "x.nii.gz"
        path.parent.mkdir()
        path.write_bytes(content)
        text = refused(path, tmp_path / "ct")
        assert "DICOM" not in text

    @pytest.mark.parametrize("shift", [4.0, -4.0])
    def test_sheared_volume_of_a_tilted_series_is_read(self, tmp_path, shift):
        images = write_series(tmp_path / "ct", step=(0, shift, 5.0))
        volume = np.zeros((SIDE, SIDE, 6), np.uint8)
        volume[:, :, [0, 5]] = 1  # To the edges of the first and the last slice.
        write_nifti(tmp_path / "r" / "x.nii", volume, affine_of(images))
        found = masks_of(tmp_path / "ct", tmp_path / "r")
        assert {n: mask.sum() for n, mask in found.items()} == {1: SIDE**2, 6: SIDE**2}

    def test_regions_outside_a_tilted_slice_are_refused(self, tmp_path):
        images = write_series(tmp_path / "ct", step=(0, 8.0, 5.0))
        path = tmp_path / "r" / "x.nii"
        straight = affine_of(images)
        straight[:2, 2] = 0
        # At the pixels of the first slice, outside those of the last.
        volume = np.zeros((SIDE, SIDE - 1, 6), np.uint8)
        volume[:, :20, 5] = 1
        write_nifti(path, volume, straight)
        refused(path, tmp_path / "ct")

    def test_volume_without_the_tilt_of_its_series_is_refused(self, tmp_path):
        images = write_series(tmp_path / "ct", step=(0, 2.0, 5.0))
        straight = affine_of(images)
        straight[:2, 2] = 0
        path = tmp_path / "r" / "x.nii"
        write_nifti(path, volume_of(index=1), straight, 1, straight, 1)
        assert "tilt" in refused(path, tmp_path / "ct")

    def test_numbered_masks_of_a_tilted_series_are_read(self, tmp_path):
        write_series(tmp_path / "ct", step=(0, 4.0, 5.0))
        save(tmp_path / "r" / "all.npy", volume_of(index=4).T)
        found = masks_of(tmp_path / "ct", tmp_path / "r")
        np.testing.assert_array_equal(found[5], square())

    def test_two_phases_at_one_position_are_refused(self, tmp_path):
        images = two_phases(tmp_path / "ct")
        path = tmp_path / "r" / "x.nii"
        write_nifti(path, volume_of(), affine_of(images))
        text = refused(path, tmp_path / "ct")
        assert str(tmp_path / "ct" / "a" / "c.dcm") in text
        assert str(tmp_path / "ct" / "b" / "c.dcm") in text


UP, DOWN = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0]


@pytest.mark.parametrize(
    ("count", "step", "orientation"),
    [
        (5, (0, 0, 5.0), UP),
        (5, (0, 3.0, 5.0), UP),
        (5, (0, -3.0, -5.0), UP),
        (5, (0, 3.0, 5.0), DOWN),
        (1, (0, 0, 5.0), UP),
    ],
)
def test_written_volumes_are_read_back_at_the_same_pixels(
    tmp_path, count, step, orientation
):
    write_series(tmp_path / "ct", count, step=step, ImageOrientationPatient=orientation)
    ((series,), *_) = find_series(tmp_path / "ct")
    labels = np.random.default_rng(0).integers(0, 3, (count, SIDE, SIDE), np.uint8)
    for headers, part in ((series.headers, labels), (series.headers[::-1], labels)):
        written = dataclasses.replace(series, headers=headers)
        path = tmp_path / "r" / "classes.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write.write_nifti(path, part, write.affine(written), "")
        found = masks_of(tmp_path / "ct", path.parent, names="ab")
        for header, mask in zip(headers, part, strict=True):
            np.testing.assert_array_equal(found[header.number], mask)


def test_sheared_volumes_have_only_one_position(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    images = write_series(tmp_path / "ct", 5, step=(0, 1.8, 5.0))
    ((series,), *_) = find_series(tmp_path / "ct")
    path = tmp_path / "classes.nii.gz"
    labels = np.zeros((5, SIDE, SIDE), np.uint8)
    write.write_nifti(path, labels, write.affine(series), "")
    header = nibabel.load(path).header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)
    matrix = header.get_sform()
    np.testing.assert_allclose(
        header.get_zooms(), np.linalg.norm(matrix[:3, :3], axis=0), rtol=1e-6
    )
    for k, corner in itertools.product(range(5), [(0, 0), (0, SIDE - 1)]):
        x, y, z = (float(v) for v in images[k].ImagePositionPatient)
        expected = [-x, -(y + corner[1] * roi_files.MM), z]
        np.testing.assert_allclose((matrix @ [*corner, k, 1])[:3], expected, atol=1e-4)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))


@pytest.mark.parametrize("name", ["b.png", "seg.nii.gz"])
def test_regions_of_a_patient_without_slices_are_not_those_of_another(tmp_path, name):
    """The mask lies in P2/, and fits the slices of P1 by name, size and position."""
    images = write_series(tmp_path / "ct" / "P1")
    mask = tmp_path / "rois" / "P2" / name
    if name.endswith(".png"):
        save(mask, square())
    else:
        mask.parent.mkdir(parents=True)
        roi_files.write_nifti(mask, images, np.stack([square()] * 6))
    with refused_at(mask):
        search(tmp_path / "ct", tmp_path / "rois")
    # Slices that lie in no folder of a patient may be meant by any folder.
    assert len(search(tmp_path / "ct" / "P1", tmp_path / "rois")) == 1

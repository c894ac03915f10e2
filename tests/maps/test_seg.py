"""DICOM SEG, read back by highdicom and checked by dciodvfy of dicom3tools."""

import numpy as np
import pydicom
import pytest
from basics import refused_at
from chest import STUDY, chest, write_chest
from ct_files import errors_of, write_enhanced

from twostage_jax.ct.series import find_series
from twostage_jax.errors import UserError
from twostage_jax.maps.seg import write_segmentation

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
NAMES = ("normal", "ground_glass", "honeycombing")
HASH = "0123456789ab" + "cd" * 26


def chest_labels(slices=3):
    """Differs from slice to slice; the third class does not occur."""
    _, lungs, disease = chest(slices)
    labels = lungs + disease.astype(np.uint8)
    labels[0, :40] = 0
    return labels


def written(folder, labels=None, names=NAMES, **tags):
    write_chest(folder / "dicom", **tags)
    ((series,), _) = find_series(folder / "dicom")
    labels = chest_labels() if labels is None else labels
    write_segmentation(
        folder / "seg.dcm",
        series.headers,
        labels,
        names,
        model="model 0123456789ab (two_stage), trained on phantoms feedfeedfeed",
        model_hash=HASH,
        settings={"stride in pixels": "8", "data fingerprint": "feed" * 16},
    )
    return series, labels, highdicom.seg.segread(folder / "seg.dcm")


@pytest.fixture(scope="module")
def chest_seg(tmp_path_factory):
    """The folder of a segmentation, its series, labels and what is read back."""
    folder = tmp_path_factory.mktemp("seg")
    return folder, *written(folder)


def masks_by_source(series, found):
    uids = [header.sop_uid for header in series.headers]
    return found.get_pixels_by_source_instance(
        uids, segment_numbers=range(1, 1 + found.number_of_segments),
        assert_missing_frames_are_empty=True,
    )  # fmt: skip


def test_masks_read_back_over_the_images_they_were_made_from(chest_seg):
    _, series, labels, found = chest_seg
    masks = masks_by_source(series, found)  # [Z, H, W, K]
    for index in range(len(NAMES)):
        np.testing.assert_array_equal(masks[..., index], labels == 1 + index)
    assert masks[..., 0].any() and masks[..., 1].any() and not masks[..., 2].any()


def test_frames_lie_at_the_places_of_their_images(chest_seg):
    _, series, _, found = chest_seg
    places = {header.sop_uid: header.position for header in series.headers}
    for frame in found.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert tuple(position) == places[source.ReferencedSOPInstanceUID]


def test_it_refers_to_the_series_and_carries_its_identity(chest_seg):
    _, series, _, found = chest_seg
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.uid != found.SeriesInstanceUID
    referred = {
        item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence
    }
    assert referred == {header.sop_uid for header in series.headers}
    assert found.FrameOfReferenceUID == STUDY["FrameOfReferenceUID"]
    assert found.StudyInstanceUID == STUDY["StudyInstanceUID"]
    assert (found.PatientID, found.PatientName) == ("Smith^1", "Smith^Jane")


def test_it_says_what_made_it_and_what_it_is_not_for(chest_seg):
    *_, found = chest_seg
    segment = found.SegmentSequence[1]
    assert segment.SegmentLabel == "ground_glass"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert HASH in algorithm.AlgorithmParameters
    assert "two_stage" in algorithm.AlgorithmParameters
    assert "feed" * 16 in algorithm.AlgorithmParameters
    # Viewers' lists cut the end of a long title off.
    assert found.SeriesDescription.startswith("Not for diagnosis")
    assert "research use only" in found.SeriesDescription
    for text in (found.ContentDescription, segment.SegmentDescription):
        assert "Research use only, not for diagnosis" in text
    assert (found.SeriesDate, found.SeriesTime) == (
        found.ContentDate,
        found.ContentTime,
    )


def test_dciodvfy_finds_errors_only_in_a_file_that_is_wrong(chest_seg, tmp_path):
    folder, *_ = chest_seg
    assert errors_of(folder / "seg.dcm") == []
    dataset = pydicom.dcmread(folder / "seg.dcm")
    del dataset.SegmentSequence
    dataset.save_as(tmp_path / "wrong.dcm")
    assert errors_of(tmp_path / "wrong.dcm") != []


@pytest.mark.parametrize(
    "identity",
    [
        {"PatientID": "../../x", "PatientName": "<script>alert(1)</script>"},
        {
            "PatientID": "Ünïcode " * 5,
            "PatientName": "漢字",
            "SpecificCharacterSet": "ISO_IR 192",
        },
        {"PatientID": None, "PatientName": None},
    ],
)
def test_odd_identities_are_carried_without_a_word(tmp_path, identity, capfd, caplog):
    # pytest turns a warning into an error: none may be heard.
    series, labels, found = written(tmp_path, **identity)
    masks = masks_by_source(series, found)
    np.testing.assert_array_equal(masks[..., 1], labels == 2)
    assert found.PatientID == (identity["PatientID"] or "").strip()
    assert errors_of(tmp_path / "seg.dcm") == []
    heard = "".join(capfd.readouterr()) + caplog.text
    assert identity["PatientID"] is None or identity["PatientID"] not in heard


ODD = {
    "PatientBirthDate": "1947-11-02",
    "PatientSex": "unknown",
    "StudyDate": "19471399",
    "StudyTime": "noon",
    "PatientAge": "old",
    "PatientWeight": "70 kg",
    "SpacingBetweenSlices": "wide",
}


def test_dates_times_and_numbers_that_are_none_are_left_out(tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    _, labels, found = written(tmp_path, **ODD)
    assert [str(found.get(keyword) or "") for keyword in ODD] == [""] * len(ODD)
    assert found.pixel_array.sum() == (labels > 0).sum()
    heard = "".join(capfd.readouterr()) + caplog.text
    assert not any(value in heard for value in ODD.values())
    assert errors_of(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("thickness", [None, "", 0])
def test_thickness_that_is_not_given_is_the_distance_between_slices(
    tmp_path, thickness
):
    _, _, found = written(tmp_path, SliceThickness=thickness)
    (shared,) = found.SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SliceThickness == 10
    assert errors_of(tmp_path / "seg.dcm") == []


def test_one_slice_of_unknown_thickness_has_no_segmentation(tmp_path):
    write_chest(tmp_path / "dicom", 1, SliceThickness=None)
    ((series,), _) = find_series(tmp_path / "dicom")
    with refused_at(series.headers[0].path):
        write_segmentation(
            tmp_path / "seg.dcm", series.headers, chest_labels(1), NAMES,
            model="m", model_hash=HASH, settings={},
        )  # fmt: skip


def test_what_cannot_be_carried_over_is_refused_without_its_value(
    tmp_path, monkeypatch
):
    def raising(*_, **__):
        raise ValueError("Unable to convert '1947-11-02'")

    monkeypatch.setattr(highdicom.seg, "Segmentation", raising)
    with pytest.raises(UserError) as caught:
        written(tmp_path)
    assert "1947" not in str(caught.value)
    assert str(tmp_path / "dicom") in caught.value.where
    assert caught.value.__suppress_context__


def test_hostile_class_names_become_one_line_of_64_bytes(tmp_path):
    names = ("a\\b\nc", "<script>" * 40, "漢" * 300)
    _, _, found = written(tmp_path, names=names)
    labels = [segment.SegmentLabel for segment in found.SegmentSequence]
    assert labels[0] == "a/b c"
    assert [len(label.encode()) for label in labels] == [5, 64, 63]
    assert errors_of(tmp_path / "seg.dcm") == []


def test_normal_lung_is_coded_as_lung_and_classes_in_a_scheme_of_their_own(chest_seg):
    *_, found = chest_seg
    normal, disease, _ = (
        segment.SegmentedPropertyTypeCodeSequence[0]
        for segment in found.SegmentSequence
    )
    assert (normal.CodeValue, normal.CodingSchemeDesignator) == ("39607008", "SCT")
    assert disease.CodingSchemeDesignator == "99TWOSTAGE"
    assert disease.CodeMeaning == "ground_glass"
    (scheme,) = found.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99TWOSTAGE"


def test_series_without_frame_of_reference_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        written(tmp_path, FrameOfReferenceUID=None)
    assert error.value.where.startswith(str(tmp_path / "dicom"))
    assert not (tmp_path / "seg.dcm").exists()


def test_map_without_any_class_is_refused(tmp_path):
    with refused_at("labels"):
        written(tmp_path, labels=np.zeros((3, 96, 96), np.uint8))


@pytest.mark.parametrize("heights", [(0, 5, 10), (10, 5, 0), (5, 0, 10)])
def test_frames_of_one_file_are_referred_to_one_by_one(tmp_path, heights):
    hu, _, _ = chest(3)
    stored = hu + np.int16(1024)
    write_enhanced(tmp_path / "enhanced", stored, heights, **STUDY, InstanceNumber=1)
    ((series,), _) = find_series(tmp_path)
    labels = chest_labels()
    labels[2] = 3
    write_segmentation(
        tmp_path / "seg.dcm", series.headers, labels, NAMES,
        model="m", model_hash=HASH, settings={},
    )  # fmt: skip
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    numbers = [header.frame + 1 for header in series.headers]
    masks = found.get_pixels_by_source_frame(
        series.headers[0].sop_uid, numbers, combine_segments=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    np.testing.assert_array_equal(masks, labels)
    for frame in found.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert position[2] == heights[int(source.ReferencedFrameNumber) - 1]
    assert errors_of(tmp_path / "seg.dcm") == []


GEOMETRY = {
    "PixelMeasuresSequence": {"PixelSpacing": [0.7, 0.6], "SliceThickness": 5},
    "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
}


def segmentation_of_frames(folder, own):
    """Returns the segmentation of three frames, whose geometry does not stand for all."""
    path, stored = folder / "enhanced", chest(3)[0] + np.int16(1024)
    write_enhanced(path, stored, (0, 5, 10), own=own, **STUDY, InstanceNumber=1)
    image = pydicom.dcmread(path)
    for keyword in GEOMETRY:
        del image.SharedFunctionalGroupsSequence[0][keyword]
    image.save_as(path)
    ((series,), _) = find_series(folder)
    write_segmentation(
        folder / "seg.dcm", series.headers, chest_labels(), NAMES,
        model="m", model_hash=HASH, settings={},
    )  # fmt: skip
    return highdicom.seg.segread(folder / "seg.dcm")


def test_geometry_may_stand_with_each_frame(tmp_path):
    found = segmentation_of_frames(tmp_path, dict.fromkeys(range(3), GEOMETRY))
    (shared,) = found.SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.7, 0.6]
    turn = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert turn == [1, 0, 0, 0, 1, 0]
    volume = found.get_volume(combine_segments=True)  # from the head
    np.testing.assert_array_equal(volume.array[::-1], chest_labels())
    assert errors_of(tmp_path / "seg.dcm") == []


def test_frames_of_different_thickness_have_no_segmentation(tmp_path):
    own = dict.fromkeys(range(3), GEOMETRY)
    thin = {"PixelSpacing": [0.7, 0.6], "SliceThickness": 4}
    own[1] = {**GEOMETRY, "PixelMeasuresSequence": thin}
    with refused_at(tmp_path / "enhanced"):
        segmentation_of_frames(tmp_path, own)
    assert not (tmp_path / "seg.dcm").exists()

"""Images that a model was not trained on: synthetic images, and distances."""

import dataclasses
import json

import numpy as np
import pydicom
import pytest
from chest import DISEASED_HU, chest, how, write_chest, write_run
from ct_files import write_patient
from prepare_runs import rows_of
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import NearestNeighbors

from twostage_jax.ct.dicom import read_headers
from twostage_jax.ct.phantom import phantom_slices
from twostage_jax.ct.phantom import write_patient as write_phantom
from twostage_jax.data import ct_patches, prepared_folder, store
from twostage_jax.data.dataset import Example
from twostage_jax.data.store import prepare
from twostage_jax.data.synthetic import natural, phantoms, textures
from twostage_jax.errors import UserError
from twostage_jax.maps import write
from twostage_jax.maps.classify import Classifier, classify
from twostage_jax.maps.run import map_folder
from twostage_jax.study import artifacts
from twostage_jax.train import novelty

PIXELS = (3.0, 3.0)


def points(count, groups, seed=0, size=5):
    """Features that lie around a centre of their group."""
    rng = np.random.default_rng(seed)
    names = rng.integers(0, groups, count)
    centres = rng.normal(size=(groups, size))
    return centres[names] + 0.3 * rng.normal(size=(count, size)), names.astype(str)


def nearest(known, asked, like):
    """Distances to the nearest image, of features standardised by those of `like`."""
    scale = like.std(0) + novelty.FLOOR * like.std()
    found = NearestNeighbors(n_neighbors=1).fit((known - like.mean(0)) / scale)
    return found.kneighbors((asked - like.mean(0)) / scale)[0][:, 0]


def unlike(asked, made):
    return np.asarray(novelty.is_unlike(asked.astype(np.float32), *made[:-1]))


def test_images_beyond_the_threshold_of_the_nearest_are_unlike():
    (known, _), (asked, _) = points(80, 4), points(60, 4, seed=1)
    distances = nearest(known, asked, known)
    for limit in (0.3, 1.0, 3.0):
        made = novelty.reference(known, None)._replace(threshold=limit)
        clear = np.abs(distances - limit) > 0.01
        expected = distances[clear] > limit
        np.testing.assert_array_equal(unlike(asked, made)[clear], expected)


def test_images_whose_features_are_not_numbers_are_unlike():
    known, _ = points(80, 4)
    asked = np.repeat(known[:1], 2, axis=0)
    asked[1, 0] = np.nan
    made = novelty.reference(known, None)
    assert unlike(asked, made).tolist() == [False, True]


def test_threshold_is_the_quantile_of_distances_from_other_patients():
    features, groups = points(200, 6)
    held_out = np.empty(200)
    for rest, own in LeaveOneGroupOut().split(features, groups=groups):
        held_out[own] = nearest(features[rest], features[own], features)
    made = novelty.reference(features, groups)
    assert made.groups == 6
    assert made.threshold == pytest.approx(np.quantile(held_out, 0.99), rel=5e-3)
    # Neighbours within a patient are nearer.
    assert novelty.reference(features, None).threshold < 0.8 * made.threshold


@pytest.mark.parametrize("groups", [None, 1, 2])
def test_with_too_few_patients_images_are_held_out_one_by_one(groups):
    features, names = points(40, groups or 3)
    made = novelty.reference(features, None if groups is None else names)
    held_out = [
        nearest(np.delete(features, i, 0), features[[i]], features)[0]
        for i in range(len(features))
    ]
    assert made.groups == 0
    assert made.threshold == pytest.approx(np.quantile(held_out, 0.99), rel=5e-3)


def test_a_hundredth_of_the_images_of_new_patients_lies_outside():
    """Without group effects, so that the quantile of the threshold can be checked."""
    rng = np.random.default_rng(3)
    known, new = rng.normal(size=(1500, 4)), rng.normal(size=(20000, 4))
    made = novelty.reference(known, np.arange(1500) % 15)
    assert 0.003 < unlike(new, made).mean() < 0.02


def test_channel_that_is_dead_on_the_training_images_counts_when_it_is_not():
    known, _ = points(50, 3)
    known[:, 2] = 0
    made = novelty.reference(known, None)
    awake = known.copy()
    awake[:, 2] = 0.1
    assert not unlike(known, made).any() and unlike(awake, made).all()


@pytest.mark.parametrize("count", [1, 1999, 2000, 2001, 9000])
def test_training_images_are_chosen_evenly(count):
    indices = 3 * np.arange(count)
    found = novelty.chosen(indices)
    assert len(found) <= 2000 and len(np.unique(np.diff(found))) <= 1
    assert found[-1] >= indices[-1] - 3 * (count // len(found))


def test_reference_is_read_as_it_was_written_and_only_for_its_run(tmp_path):
    assert novelty.load(tmp_path, "ab") is None
    made = novelty.reference(*points(30, 4))
    novelty.save(tmp_path, made, "ab")
    read = novelty.load(tmp_path, "ab")
    np.testing.assert_array_equal(read.features, made.features)
    np.testing.assert_array_equal(read.mean, made.mean)
    np.testing.assert_array_equal(read.scale, made.scale)
    assert read[-2:] == made[-2:]
    with pytest.raises(UserError) as error:
        novelty.load(tmp_path, "cd")
    assert error.value.where == str(tmp_path / novelty.FILE)


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"x" * 100, "cut", "missing", "nan", "objects"]
)
def test_damaged_reference_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / novelty.FILE
    made = novelty.reference(*points(30, 4))
    novelty.save(tmp_path, made, "ab")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "missing":
        np.savez(path, features=made.features, run=np.array("ab"))
    elif content == "nan":
        novelty.save(tmp_path, made._replace(threshold=float("nan")), "ab")
    else:
        odd = np.array([{}], object)
        np.savez(path, **{**made._asdict(), "features": odd}, run=np.array("ab"))
    with pytest.raises(UserError) as error:
        novelty.load(tmp_path, "ab")
    assert error.value.where == str(path)


# Synthetic images


def test_phantoms_say_in_dicom_that_they_are_synthetic(tmp_path):
    write_phantom(tmp_path / "p", phantom_slices(0, slices=1, matrix=64))
    (path,) = (tmp_path / "p").glob("*.dcm")
    assert pydicom.dcmread(path).SyntheticData == "YES"
    assert read_headers(path)[0].synthetic


@pytest.mark.parametrize(
    ("tags", "synthetic"),
    [
        ({}, False),
        ({"SyntheticData": "NO", "QualityControlImage": "NO"}, False),
        ({"SyntheticData": "YES"}, True),
        ({"QualityControlImage": "YES"}, True),
    ],
)
def test_patches_are_synthetic_where_their_files_say_so(tmp_path, tags, synthetic):
    write_patient(tmp_path / "in" / "x", **tags)
    write_patient(
        tmp_path / "in" / "y", patient="p2", uid=6, SeriesInstanceUID="1.2.3.4"
    )
    found = ct_patches.patient_examples(
        tmp_path / "in", class_names=("a", "b"), size=4, stride=4, coverage=0.75
    )
    by_patient = {e.group: e.synthetic for e in found}
    assert sorted(by_patient.values()) == sorted([synthetic, False])
    # One such patient is enough for the set, whoever prepares and reads it.
    recipe = ct_patches.recipe(
        path=str(tmp_path / "in"), classes="a,b", size=4, stride=4, coverage=0.75
    )
    made = prepare(recipe, tmp_path / "out", workers=1, progress=False)
    assert made.synthetic is synthetic
    description = {
        "name": recipe.name, "kind": "ct", "key": recipe.key, "patch": 4,
        "class_names": recipe.class_names,
    }  # fmt: skip
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(description))
    again = prepared_folder.recipe(path=str(tmp_path / "out"))
    assert prepare(again, tmp_path, progress=False).synthetic is synthetic


def test_generated_sources_are_synthetic():
    for recipe in (natural.recipe(), textures.recipe(), phantoms.recipe()):
        assert recipe.synthetic


def test_set_prepared_before_this_was_recorded_is_what_its_recipe_says(
    tmp_path, monkeypatch
):
    recipe = natural.recipe(size=16, classes=2, per_class=6)
    made = prepare(recipe, tmp_path, workers=1, progress=False)
    assert made.synthetic
    (info,) = tmp_path.rglob("metadata.json")
    saved = json.loads(info.read_text())
    assert saved.pop("synthetic") is True
    info.write_text(json.dumps(saved))
    assert prepare(recipe, tmp_path, progress=False).synthetic
    real = dataclasses.replace(recipe, synthetic=False)
    assert not prepare(real, tmp_path, progress=False).synthetic


def test_task_that_is_read_again_is_as_synthetic_as_it_was(tmp_path):
    images = [Example(str(i), np.zeros((2, 2, 1), np.uint8), 0) for i in range(2)]
    images[1] = dataclasses.replace(images[1], synthetic=True)
    store.save(tmp_path / "t.npz", images)
    assert [e.synthetic for e in store.load(tmp_path / "t.npz")] == [False, True]


# Maps


def classifier_of(tmp_path, **settings):
    run = artifacts.find(write_run(tmp_path / "study", **settings))
    return Classifier(run, (-600.0, 1500.0))


def mapped(tmp_path, classifier, *, go_on=False, slices=3, **tags):
    write_chest(tmp_path / "dicom", slices, gap=5.0, **tags)
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how(), go_on=go_on)
    (folder,) = (tmp_path / "maps").glob("patient-*")
    return folder


def test_windows_unlike_the_training_images_are_marked(brightness, tmp_path):
    hu, lungs, disease = chest(2)
    found = classify(hu, lungs, PIXELS, classifier_of(tmp_path / "a", known=[0]), how())
    # Only healthy lung was seen: what is called diseased is what is unlike it, but for
    # pixels where the weights of both kinds of windows balance.
    differ = found.unlike != (found.labels == 2)
    assert found.unlike.any() and differ.sum() < 0.01 * found.unlike.sum()
    assert (hu[found.unlike & disease] == DISEASED_HU).all()
    assert found.unlike_fraction == found.unlike.sum() / (found.labels > 0).sum()
    both = classify(
        hu, lungs, PIXELS, classifier_of(tmp_path / "b", known=[0, 1]), how()
    )
    assert both.unlike_fraction == 0 and not both.unlike.any()
    np.testing.assert_array_equal(both.labels, found.labels)
    np.testing.assert_array_equal(both.probabilities, found.probabilities)


def test_run_without_a_reference_judges_nothing(brightness, tmp_path, capsys):
    classifier = classifier_of(tmp_path)
    folder = mapped(tmp_path, classifier)
    with np.load(folder / "probabilities.npz", allow_pickle=False) as saved:
        assert "unlike_training" not in saved
    assert not (folder / "unlike_training.nii.gz").exists()
    rows = write.read_report(folder / "report.csv")
    assert {row["fraction_unlike_training"] for row in rows} == {""}
    about = json.loads((folder / "series.json").read_text())["unlike_training"]
    assert set(about.values()) == {None}


def test_what_is_unlike_is_counted_in_every_file(brightness, tmp_path, capsys):
    import highdicom
    import nibabel

    folder = mapped(tmp_path, classifier_of(tmp_path, known=[0]))
    with np.load(folder / "probabilities.npz", allow_pickle=False) as saved:
        unlike, labels = saved["unlike_training"], saved["labels"]
        lungs = saved["lungs"]
    fraction = unlike.sum() / (labels > 0).sum()
    assert 0.1 < fraction < 0.5 and not (unlike & ~lungs).any()
    image = nibabel.load(folder / "unlike_training.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, unlike)
    rows = {
        (row["region"], row["class"]): float(row["fraction_unlike_training"])
        for row in write.read_report(folder / "report.csv")
    }
    assert rows["lungs", "normal"] == pytest.approx(fraction, abs=1e-5)
    assert rows["lungs", "ground_glass"] == rows["lungs", "not classified"]
    # The same in every slice, and so at every height.
    assert rows["upper", "normal"] == pytest.approx(fraction, abs=1e-5)
    assert rows["central", "normal"] != rows["peripheral", "normal"]
    about = json.loads((folder / "series.json").read_text())["unlike_training"]
    assert about["fraction_of_classified_lung"] == pytest.approx(fraction)
    assert f"{100 * fraction:.0f} %" in capsys.readouterr().out
    # In the segmentation it is a segment of its own, and has no class.
    found = highdicom.seg.segread(folder / "segmentation.dcm")
    volume = found.get_volume(combine_segments=True, relabel=True)
    assert found.number_of_segments == 3
    counts = np.bincount(volume.array.ravel(), minlength=4)[1:]
    expected = [
        (labels[~unlike] == 1).sum(),
        (labels[~unlike] == 2).sum(),
        unlike.sum(),
    ]
    assert counts.tolist() == expected


def test_map_of_which_most_is_unlike_is_refused_unless_asked_for(
    brightness, tmp_path, capsys
):
    classifier = classifier_of(tmp_path, known=[1])
    with pytest.raises(UserError):
        mapped(tmp_path, classifier)
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    hu, lungs, _ = chest(3)
    fraction = classify(hu, lungs, PIXELS, classifier, how()).unlike_fraction
    assert fraction > 0.5
    percent = int(row["reason"].split("refused: ")[1].split(" %")[0])
    assert percent == pytest.approx(100 * fraction, abs=2)
    assert not list((tmp_path / "maps").glob("patient-*"))
    folder = mapped(tmp_path, classifier, go_on=True)
    assert rows_of(tmp_path / "maps" / "skipped.csv") == []
    assert (folder / "overlays" / "0001.png").exists()
    inode = (folder / "series.json").stat().st_ino
    with pytest.raises(UserError):  # although it is there
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert rows_of(tmp_path / "maps" / "skipped.csv") == [row]
    assert write.read_report(tmp_path / "maps" / "report.csv") == []
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how(), go_on=True)
    assert write.read_report(tmp_path / "maps" / "report.csv") != []
    assert (folder / "series.json").stat().st_ino == inode


@pytest.mark.parametrize("known", [None, [0, 1]])
def test_model_of_synthetic_images_maps_patients_only_when_asked_to(
    brightness, tmp_path, known
):
    classifier = classifier_of(tmp_path, synthetic=True, known=known)
    with pytest.raises(UserError):
        mapped(tmp_path, classifier)
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    assert "synthetic" in row["reason"] and "100 %" in row["reason"]
    folder = mapped(tmp_path, classifier, go_on=True)
    with np.load(folder / "probabilities.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["unlike_training"], saved["labels"] > 0)
    about = json.loads((folder / "series.json").read_text())["unlike_training"]
    assert about["fraction_of_classified_lung"] == 1
    assert about["by_features"] == (None if known is None else 0)
    with pytest.raises(UserError):  # although it is there
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())


def test_model_of_synthetic_images_maps_synthetic_series(brightness, tmp_path):
    classifier = classifier_of(tmp_path, synthetic=True, known=[0, 1])
    folder = mapped(tmp_path, classifier, SyntheticData="YES")
    rows = write.read_report(folder / "report.csv")
    assert {row["fraction_unlike_training"] for row in rows} == {"0.00000"}
    assert "synthetic" in rows[0]["remarks"]


@pytest.mark.parametrize(
    ("synthetic", "word"), [(True, "synthetic"), (None, "not recorded"), (False, "")]
)
def test_every_file_says_where_the_training_images_came_from(
    brightness, tmp_path, synthetic, word
):
    import nibabel

    classifier = classifier_of(tmp_path, synthetic=synthetic)
    folder = mapped(tmp_path, classifier, slices=2, SyntheticData="YES")
    segmentation = pydicom.dcmread(folder / "segmentation.dcm")
    segment = segmentation.SegmentSequence[0]
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    with np.load(folder / "probabilities.npz", allow_pickle=False) as saved:
        notice = str(saved["notice"])
    long = [
        notice,
        write.read_report(folder / "report.csv")[0]["notice"],
        json.loads((folder / "series.json").read_text())["notice"],
        segment.SegmentDescription,
        algorithm.AlgorithmParameters,
    ]
    short = [
        segmentation.SeriesDescription,
        segmentation.ContentDescription,
        *(
            bytes(nibabel.load(folder / name).header["descrip"]).decode()
            for name in ("classes.nii.gz", "probabilities.nii.gz")
        ),
    ]
    for text in long:
        assert word in text and ("synthetic" in text) == (synthetic is not False)
    for text in short:
        assert ("synthetic training" in text) == (synthetic is True)
        assert ("training unknown" in text) == (synthetic is None)
    assert max(map(len, short[:2])) <= 64
    # A NIfTI header holds 79 letters: none of the notice may be cut off.
    assert all(
        text.rstrip("\0").endswith(classifier.run.hash[:12]) for text in short[2:]
    )


def test_maps_are_made_again_when_the_comparison_changes(brightness, tmp_path):
    folder = mapped(tmp_path, classifier_of(tmp_path / "a"))
    before = (folder / "series.json").read_text()
    mapped(tmp_path, classifier_of(tmp_path / "b", known=[0]))
    after = (folder / "series.json").read_text()
    assert json.loads(before)["key"] != json.loads(after)["key"]

"""Settings of maps, from training or a flag; windows, their weights, their average."""

import json

import numpy as np
import pytest
from basics import refused_at
from chest import WINDOW, Channels, chest, how, write_chest, write_run
from scipy import ndimage

from twostage_jax import models
from twostage_jax.maps import classify, scale
from twostage_jax.maps.classify import Classifier, How
from twostage_jax.maps.run import map_folder
from twostage_jax.study import artifacts


def test_window_is_the_trainings_unless_it_saw_no_hu(tmp_path):
    # The lineage says so, whatever the source: slices and folders may hold either.
    of_hu = artifacts.find(
        write_run(tmp_path / "a", window=[-400, 1000], source="slices")
    )
    of_pictures = artifacts.find(
        write_run(tmp_path / "b", source="slices", units="grey")
    )
    unknown = artifacts.find(write_run(tmp_path / "c", units=None))
    with refused_at("--window"):
        scale.parse_window("", unknown)
    assert scale.parse_window("", of_hu) == (-400, 1000)
    assert scale.parse_window("-500, 1400", of_hu) == (-500, 1400)
    assert scale.parse_window("-500,1400", of_pictures) == (-500, 1400)
    wrong = ("x", "-600", "-600,0", "-600,nan", "1,2,3,4,5,6", "1,2,")
    for text, run in (("", of_pictures), *((text, of_hu) for text in wrong)):
        with refused_at("--window"):
            scale.parse_window(text, run)


def test_spacing_is_the_trainings_unless_another_is_given(tmp_path):
    as_scanned = artifacts.find(write_run(tmp_path / "a"))
    resampled = artifacts.find(write_run(tmp_path / "b", options={"spacing": 0.7}))
    assert scale.parse_spacing(None, as_scanned) is None
    assert scale.parse_spacing(None, resampled) == 0.7
    assert scale.parse_spacing(0.9, resampled) == 0.9
    assert scale.parse_spacing(0, resampled) is None
    for wrong in (-1, 0.01, 11, float("nan")):
        with refused_at("--spacing"):
            scale.parse_spacing(wrong, resampled)


@pytest.mark.parametrize(
    ("source", "units", "known"),
    [
        ("dicom", "hu", True),
        ("phantoms", "hu", True),
        ("slices", "hu", True),  # cut from DICOM files, pixel by pixel
        ("slices", "grey", False),
        ("folder", "hu", False),  # resized
        ("tfds", "grey", False),
    ],
)
def test_spacing_is_required_if_the_pixels_of_training_have_no_known_size(
    tmp_path, source, units, known
):
    run = artifacts.find(write_run(tmp_path, source=source, units=units))
    if known:
        assert scale.parse_spacing(None, run) is None
    else:
        with refused_at("--spacing"):
            scale.parse_spacing(None, run)
    assert scale.parse_spacing(0, run) is None
    assert scale.parse_spacing(1.4, run) == 1.4


def test_spacing_of_a_prepared_set_is_read_beside_it(tmp_path):
    settings = {"source": "prepared", "options": {"path": str(tmp_path)}}
    run = artifacts.find(write_run(tmp_path / "study", **settings))
    assert scale.parse_window("", run) == (-600, 1500)
    with refused_at("--spacing"):
        scale.parse_spacing(None, run)
    made = {"fingerprint": "feed" * 16, "settings": {"spacing": 0.8}}
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    assert scale.parse_spacing(None, run) == 0.8
    made["fingerprint"] = "dead" * 16
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    with refused_at("--spacing"):
        scale.parse_spacing(None, run)


def test_more_classes_than_a_map_can_hold_are_refused(tmp_path, brightness):
    names = [f"c{i}" for i in range(256)]
    run = artifacts.find(write_run(tmp_path, class_names=names))
    with refused_at(run.folder):
        Classifier(run, (-600, 1500))


def test_three_windows_are_the_three_channels_of_the_network(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "channels", Channels)
    # Healthy lung, -850 HU, is brightest in the gentle one, disease, -650 HU, in the
    # steep one, and nothing is bright in the window of bone.
    gentle, steep, bone = (-800, 1200), (-700, 100), (2000, 100)
    folder = write_run(tmp_path, class_names="abc", window=[*bone, *steep, *gentle])
    path = folder / "lineage.json"
    lineage = json.loads(path.read_text())
    lineage["model"] |= {"name": "channels", "channels": 3}
    lineage["data"] |= {"mean": [0.5] * 3, "deviation": [0.25] * 3}
    path.write_text(json.dumps(lineage))
    run = artifacts.find(tmp_path)
    hu, lungs, disease = chest(2)
    # Away from borders, where a window sees both.
    ill, sound = (
        ndimage.binary_erosion(m, iterations=WINDOW)
        for m in (disease[0], lungs[0] & ~disease[0])
    )
    assert ill.sum() > 20 and sound.sum() > 20
    for window, classes in [("", (3, 2)), ("-700,100,-800,1200,2000,100", (2, 1))]:
        window = scale.parse_window(window, run)
        asked = How(stride=2, window=window, spacing=None)
        found = classify.classify(hu, lungs, (3.0, 3.0), Classifier(run, window), asked)
        for where, label in zip((sound, ill), classes, strict=True):
            assert (found.labels[:, where] == label).all()


@pytest.mark.parametrize("steepness", [np.nan, 1e38])
def test_probabilities_that_are_not_finite_are_refused(tmp_path, brightness, steepness):
    run = artifacts.find(write_run(tmp_path, steepness=steepness))
    hu, lungs, _ = chest(1)
    with refused_at(run.folder):
        classify.classify(
            hu, lungs, (3.0, 3.0), Classifier(run, run.window), how(stride=6)
        )


def test_hostile_names_stay_inside_the_output(tmp_path, brightness, capsys):
    names = ("../../x", "<script>alert(1)</script>" * 12)
    run = artifacts.find(write_run(tmp_path / "study", class_names=names))
    write_chest(
        tmp_path / "dicom",
        1,
        PatientID="/etc/passwd",
        PatientName="$(touch x)",
        SeriesDescription="\u202e" * 60,
        SpecificCharacterSet="ISO_IR 192",
    )
    before = sorted(tmp_path.parent.rglob("*"))
    how = How(stride=6, window=(-600, 1500), spacing=None)
    map_folder(tmp_path / "dicom", tmp_path / "out", Classifier(run, how.window), how)
    made = set(tmp_path.parent.rglob("*")) - set(before)
    assert all(tmp_path / "out" in (path, *path.parents) for path in made)
    assert "passwd" not in capsys.readouterr().out
    (folder,) = (tmp_path / "out").glob("patient-*")
    assert json.loads((folder / "series.json").read_text())["note"] == ""


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (10, 4, 4, [0, 4, 6]),  # the last window ends with the axis
        (4, 4, 8, [0]),
        (5, 4, 8, [0, 1]),
    ],
)
def test_windows_reach_every_pixel(length, size, stride, expected):
    assert classify.starts(length, size, stride).tolist() == expected


def test_window_longer_than_the_axis_is_refused():
    with pytest.raises(ValueError):
        classify.starts(4, 5, 1)


def test_fractions_inside_are_those_counted_window_by_window():
    mask = np.random.default_rng(0).random((13, 17)) < 0.4
    rows, columns = classify.starts(13, 5, 3), classify.starts(17, 5, 4)
    counted = [[mask[r : r + 5, c : c + 5].mean() for c in columns] for r in rows]
    np.testing.assert_allclose(
        classify.fractions_inside(mask, rows, columns, 5), counted
    )


def test_window_weighs_most_at_its_centre_and_falls_to_its_edges():
    # Centres of pixels lie at 0.5, 1.5, ...; that of the window at 2.
    weights = classify.weights(np.array([0, 2]), 4, 6, 6)
    np.testing.assert_allclose(weights[:, 0], [0.25, 0.75, 0.75, 0.25, 0, 0])
    np.testing.assert_allclose(weights[:, 1], [0, 0, 0.25, 0.75, 0.75, 0.25])


def test_weights_on_a_finer_map_lie_at_the_same_places():
    # Three map pixels to two of the windows' grid: their centres at 1/3, 1, 5/3, ...
    weights = classify.weights(np.array([0]), 4, 4, 6)[:, 0]
    centres = np.array([1, 3, 5, 7, 9, 11]) / 3
    np.testing.assert_allclose(weights, 1 - np.abs(centres - 2) / 2, rtol=1e-6)


def test_average_is_that_of_a_loop_over_windows():
    rng = np.random.default_rng(1)
    size, shape, classes = 4, (11, 9), 3
    rows, columns = classify.starts(11, size, 3), classify.starts(9, size, 2)
    windows = rng.dirichlet(np.ones(classes), (len(rows), len(columns)))
    used = rng.random((len(rows), len(columns))) < 0.6
    tent = np.array([0.25, 0.75, 0.75, 0.25])
    sums, total = np.zeros((classes, *shape)), np.zeros(shape)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            if used[i, j]:
                weight = np.outer(tent, tent)
                total[r : r + size, c : c + size] += weight
                sums[:, r : r + size, c : c + size] += windows[i, j][:, None, None] * (
                    weight
                )
    down = classify.weights(rows, size, 11, 11)
    across = classify.weights(columns, size, 9, 9)
    mean, reached = classify.average(windows, used, down, across)
    np.testing.assert_array_equal(reached, total > 0)
    assert 0 < (~reached).sum() < reached.size
    np.testing.assert_allclose(
        mean[:, reached], sums[:, reached] / total[reached], 1e-5
    )
    assert not mean[:, ~reached].any()
